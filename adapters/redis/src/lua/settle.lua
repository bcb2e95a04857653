-- Acknowledges, renews or gives back entries, each only while it is still this consumer's: the same
-- consumer and the same delivery count. Answers a digit for each entry, 1 where it was.
-- KEYS: stream, lock. ARGV: group, consumer, token or '', mode, then for each entry, in the order of
-- the ids: id, count, and the count to give it back with.
local stream, group, consumer, token, mode = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local counts, answers, ids = {}, {}, {}
if token == '' or redis.call('GET', KEYS[2]) == token then
    local range = redis.call('XPENDING', stream, group, ARGV[5], ARGV[#ARGV - 2], 1000000, consumer)
    for _, entry in ipairs(range) do
        counts[entry[1]] = entry[4]
    end
end
for i = 5, #ARGV, 3 do
    local mine = counts[ARGV[i]] == tonumber(ARGV[i + 1])
    answers[#answers + 1] = mine and '1' or '0'
    if mine then
        if mode == 'back' then
            -- Idle since 1970: whoever looks next may have it.
            redis.call('XCLAIM', stream, group, consumer, 0, ARGV[i], 'TIME', 0,
                'RETRYCOUNT', ARGV[i + 2], 'JUSTID')
        else
            ids[#ids + 1] = ARGV[i]
        end
    end
end
for first = 1, #ids, 1000 do
    local last = math.min(first + 999, #ids)
    if mode == 'ack' then
        redis.call('XACK', stream, group, unpack(ids, first, last))
    else
        local claim = { stream, group, consumer, 0, unpack(ids, first, last) }
        claim[#claim + 1] = 'JUSTID'
        redis.call('XCLAIM', unpack(claim))
    end
end
return table.concat(answers)
