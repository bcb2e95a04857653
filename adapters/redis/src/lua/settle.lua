-- Acknowledges, renews or gives back entries, each only while it is still this consumer's: the same
-- consumer and the same delivery count. Answers a digit for each entry, 1 where it was.
-- KEYS: stream, lock. ARGV: group, consumer, token or '', mode, first and last id, and for each entry
-- in the order of the ids, in one text: id, count, and the count to give it back with.
local stream, group, consumer, token, mode = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local counts, answers, ids = {}, {}, {}
if token == '' or redis.call('GET', KEYS[2]) == token then
    local range = redis.call('XPENDING', stream, group, ARGV[5], ARGV[6], 1000000, consumer)
    for _, entry in ipairs(range) do
        counts[entry[1]] = entry[4]
    end
end
for id, count, back in string.gmatch(ARGV[7], '(%S+) (%S+) (%S+)') do
    local mine = counts[id] == tonumber(count)
    answers[#answers + 1] = mine and '1' or '0'
    if mine then
        if mode == 'back' then
            -- Idle since 1970: whoever looks next may have it.
            redis.call('XCLAIM', stream, group, consumer, 0, id, 'TIME', 0, 'RETRYCOUNT', back, 'JUSTID')
        else
            ids[#ids + 1] = id
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
