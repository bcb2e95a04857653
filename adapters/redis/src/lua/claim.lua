-- Takes over entries that were delivered before: those idle for long enough, or all.
-- KEYS: stream, lock. ARGV: group, consumer, token or '', ms idle, first id, page, room, whose
-- ('any' or 'mine'), how many suspects, after how many deliveries one is, then ids to leave alone.
-- Answers: where to go on or '', what had to wait (0, 1 a suspect, 2 for room), how many have lost their payload,
-- then for each entry: id, count, fields. False when the lock is lost.
local stream, group, consumer, token = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if token ~= '' and redis.call('GET', KEYS[2]) ~= token then
    return false
end
local idle, page, room, mine = tonumber(ARGV[4]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8] == 'mine'
local suspects, suspicious, known = tonumber(ARGV[9]), tonumber(ARGV[10]), {}
for i = 11, #ARGV do
    known[ARGV[i]] = true
end
local range
if mine then
    range = redis.call('XPENDING', stream, group, 'IDLE', idle, ARGV[5], '+', page, consumer)
else
    range = redis.call('XPENDING', stream, group, 'IDLE', idle, ARGV[5], '+', page)
end
local answer = { '', 0, 0 }
local left = 8 * 1024 * 1024
for _, entry in ipairs(range) do
    local id, count = entry[1], entry[4]
    -- What this consumer let go itself is the others' first.
    local enough = entry[2] == consumer and not mine and 2 * idle or idle
    -- What was given back, idle since 1970, did come here once.
    local lost = not mine or entry[3] < 1000000000000
    if entry[3] >= enough and lost and not known[id] then
        -- Delivered so often and never settled: it may be what ends its process.
        local suspect = not mine and count >= suspicious
        if room == 0 or (suspect and suspects == 0) then
            answer[2] = room == 0 and 2 or 1
            -- In order, nothing may pass what has to wait.
            if room == 0 then
                return answer
            end
        else
            local claimed
            if mine then
                -- Its reply was lost: nobody has seen it, and it does not count.
                claimed = redis.call('XCLAIM', stream, group, consumer, 0, id, 'RETRYCOUNT', count)
            else
                claimed = redis.call('XCLAIM', stream, group, consumer, 0, id)
                count = count + 1
            end
            if claimed[1] and claimed[1][2] then
                room = room - 1
                for _, text in ipairs(claimed[1][2]) do
                    left = left - #text
                end
                if left <= 0 then
                    -- As much as one answer may hold.
                    room = 0
                end
                suspects = suspects - (suspect and 1 or 0)
                answer[#answer + 1] = { id, count, claimed[1][2] }
            else
                redis.call('XACK', stream, group, id)
                answer[3] = answer[3] + 1
            end
        end
    end
    answer[1] = '(' .. id
end
if #range < page then
    answer[1] = ''
end
return answer
