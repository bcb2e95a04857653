#!lua flags=allow-oom
-- Removes what every group has finished; nothing while there is no group, and nothing from a stream
-- that somebody else made. It also notes how far each group is, where it would begin again.
-- KEYS: stream, meta. ARGV: the most to remove, the partition's number or '' for a stream that only
-- we write to, and whether to remove from any stream ('any') or only from ours ('ours').
-- Answers how many were removed, or -1 where nothing may be.
local partition, made = ARGV[2], ''
if redis.call('EXISTS', KEYS[1]) == 0 then
    return 0
end
if partition ~= '' then
    made = redis.call('HGET', KEYS[2], 'made:' .. partition) or ''
end
local function parts(id)
    local ms, seq = string.match(id, '(%d+)-(%d+)')
    return tonumber(ms), tonumber(seq)
end
-- The id before, or one before that where a number is too large to count with.
local function before(id)
    local ms, seq = parts(id)
    if seq > 0 and seq < 2 ^ 53 then
        return string.format('%.0f-%.0f', ms, seq - 1)
    end
    return string.format('%.0f-0', math.max(0, ms - 1))
end
local function note(group, id)
    local field = 'start:' .. group .. ':' .. partition
    if redis.call('HGET', KEYS[2], 'group:' .. group) and redis.call('HGET', KEYS[2], field) ~= made .. ' ' .. id then
        redis.call('HSET', KEYS[2], field, made .. ' ' .. id)
    end
end
local floor, floor_ms, floor_seq
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for field = 1, #info, 2 do
        group[info[field]] = info[field + 1]
    end
    local id, finished = group['last-delivered-id'], group['last-delivered-id']
    if group.pending > 0 then
        local oldest = redis.call('XPENDING', KEYS[1], group.name)[2]
        if oldest then
            id, finished = oldest, before(oldest)
        end
    end
    if partition ~= '' then
        note(group.name, finished)
    end
    local ms, seq = parts(id)
    if not floor or ms < floor_ms or (ms == floor_ms and seq < floor_seq) then
        floor, floor_ms, floor_seq = id, ms, seq
    end
end
if partition ~= '' and made == '' and ARGV[3] ~= 'any' then
    return -1
end
-- Whole nodes only, which is what makes it cheap.
return floor and redis.call('XTRIM', KEYS[1], 'MINID', '~', floor, 'LIMIT', ARGV[1]) or 0
