-- Creates a destination and one of its groups, or checks them.
-- KEYS: meta, then for each partition stream and retry. ARGV: create or verify, shape, group or '',
-- its shape, where it starts.
-- Answers 'ok', or what is wrong and the name or shape that was found.
local meta, create, group = KEYS[1], ARGV[1] == 'create', ARGV[3]
local function check(field, expected)
    local found = redis.call('HGET', meta, field)
    if not found and create then
        redis.call('HSET', meta, field, expected)
    end
    return found and found ~= expected and found or nil
end
if not create and redis.call('EXISTS', meta) == 0 and redis.call('EXISTS', KEYS[2]) == 0 then
    return { 'missing', KEYS[2] }
end
local other = check('shape', ARGV[2])
if other then
    return { 'destination', other }
end
if group == '' then
    return { 'ok', '' }
end
other = check('group:' .. group, ARGV[4])
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
for i = 2, #KEYS do
    local stream, retry = KEYS[i], i % 2 == 1
    -- Looked for first: a server without memory refuses even to create what exists.
    if not exists(stream) then
        if not create then
            return { 'missing', group .. ' of ' .. stream }
        end
        -- A group that was deleted begins again where it began, not where it would miss something.
        local field = 'start:' .. group .. ':' .. i
        local start = retry and '0' or redis.call('HGET', meta, field) or ARGV[5]
        redis.call('XGROUP', 'CREATE', stream, group, start, 'MKSTREAM')
        if not retry and start == '$' then
            local info = redis.call('XINFO', 'STREAM', stream)
            for f = 1, #info, 2 do
                if info[f] == 'last-generated-id' then
                    redis.call('HSET', meta, field, info[f + 1])
                end
            end
        end
    end
end
return { 'ok', '' }
