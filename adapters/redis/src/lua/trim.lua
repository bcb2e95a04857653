-- Removes what every group has finished; nothing while there is no group. KEYS: stream.
-- ARGV: the most to remove. Answers how many were.
if redis.call('EXISTS', KEYS[1]) == 0 then
    return 0
end
local function parts(id)
    local ms, seq = string.match(id, '(%d+)-(%d+)')
    return tonumber(ms), tonumber(seq)
end
local floor, floor_ms, floor_seq
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for field = 1, #info, 2 do
        group[info[field]] = info[field + 1]
    end
    local id = group['last-delivered-id']
    if group.pending > 0 then
        id = redis.call('XPENDING', KEYS[1], group.name)[2] or id
    end
    local ms, seq = parts(id)
    if not floor or ms < floor_ms or (ms == floor_ms and seq < floor_seq) then
        floor, floor_ms, floor_seq = id, ms, seq
    end
end
-- Whole nodes only, which is what makes it cheap.
return floor and redis.call('XTRIM', KEYS[1], 'MINID', '~', floor, 'LIMIT', ARGV[1]) or 0
