-- Creates a destination and one of its groups, or checks them.
-- KEYS: meta, then the stream of each partition, then, with a group, the retry stream of each.
-- ARGV: create or verify, shape, group or '', its shape, where it starts, number of partitions.
-- Answers 'ok', or what is wrong and the name or shape that was found.
local meta, create, group, count = KEYS[1], ARGV[1] == 'create', ARGV[3], tonumber(ARGV[6])
local function check(field, expected)
    local found = redis.call('HGET', meta, field)
    if not found and create then
        redis.call('HSET', meta, field, expected)
    end
    return found and found ~= expected and found or nil, found
end
local other = check('shape', ARGV[2])
if other then
    return { 'destination', other }
end
for i = 2, count + 1 do
    if redis.call('EXISTS', KEYS[i]) == 0 then
        if not create then
            return { 'missing', KEYS[i] }
        end
        -- The group only makes the stream: nothing is in it that could be told to others.
        redis.call('XGROUP', 'CREATE', KEYS[i], 'anybroker', '$', 'MKSTREAM')
        redis.call('XGROUP', 'DESTROY', KEYS[i], 'anybroker')
        -- A stream without this mark is somebody else's, and nothing is removed from it. The time
        -- tells it apart from one of the same name that was there before.
        local time = redis.call('TIME')
        redis.call('HSET', meta, 'made:' .. i - 2, time[1] .. '.' .. time[2])
    end
end
if group == '' then
    return { 'ok', '' }
end
local known
other, known = check('group:' .. group, ARGV[4])
if other then
    return { 'group', other }
end
local function exists(stream)
    if redis.call('EXISTS', stream) == 1 then
        for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
            if info[2] == group then
                return true
            end
        end
    end
    return false
end
local function parts(id)
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    return tonumber(ms), tonumber(seq)
end
local function last(stream)
    local info = redis.call('XINFO', 'STREAM', stream)
    for field = 1, #info, 2 do
        if info[field] == 'last-generated-id' then
            return info[field + 1]
        end
    end
end
for i = 2, #KEYS do
    local stream = KEYS[i]
    -- Looked for first: a server without memory refuses even to create what exists.
    if not exists(stream) then
        if not create then
            return { 'missing', group .. ' of ' .. stream }
        end
        if i > count + 1 then
            redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
        else
            -- A group that was there before goes on where all before was finished, as far as that
            -- is known, and not where it would miss something. What is known of a stream that was
            -- deleted says nothing about the one that has its name now.
            local made = redis.call('HGET', meta, 'made:' .. i - 2) or ''
            local field, start, newest = 'start:' .. group .. ':' .. i - 2, ARGV[5], last(stream)
            if known then
                local of, id = string.match(redis.call('HGET', meta, field) or '', '^(%S*) (%S+)$')
                start = '0-0'
                if of == made then
                    local ms, seq = parts(id)
                    local newest_ms, newest_seq = parts(newest)
                    if ms < newest_ms or (ms == newest_ms and seq <= newest_seq) then
                        start = id
                    end
                end
            elseif start == '$' then
                start = newest
            end
            redis.call('XGROUP', 'CREATE', stream, group, start)
            redis.call('HSET', meta, field, made .. ' ' .. start)
        end
    end
end
return { 'ok', '' }
