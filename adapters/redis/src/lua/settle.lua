-- Acknowledges, renews or gives back entries that were delivered equally often, each only while it
-- is still this consumer's: the same consumer and the same delivery count. Answers which were not,
-- by their places from 0 on, and none that was refused.
-- KEYS: stream, lock. ARGV: group, consumer, token or '', mode, count, the count to give back with,
-- and the ids in their order.
local stream, group, consumer, token, mode, count = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local first, mine, ids, lost = 7, {}, {}, {}
if token == '' or redis.call('GET', KEYS[2]) == token then
    local range = redis.call('XPENDING', stream, group, ARGV[first], ARGV[#ARGV], 1000000, consumer)
    for i = 1, #range do
        local entry = range[i]
        if entry[4] == count then
            mine[entry[1]] = true
        end
    end
end
for i = first, #ARGV do
    local id = ARGV[i]
    if mine[id] then
        ids[#ids + 1] = id
    else
        lost[#lost + 1] = i - first
    end
end
for from = 1, #ids, 1000 do
    local to = math.min(from + 999, #ids)
    if mode == 'ack' then
        redis.call('XACK', stream, group, unpack(ids, from, to))
    else
        local claim = { stream, group, consumer, 0, unpack(ids, from, to) }
        if mode == 'back' then
            -- Idle since 1970: whoever looks next may have it.
            for _, option in ipairs({ 'TIME', 0, 'RETRYCOUNT', ARGV[6] }) do
                claim[#claim + 1] = option
            end
        end
        claim[#claim + 1] = 'JUSTID'
        redis.call('XCLAIM', unpack(claim))
    end
end
return { lost, {} }
