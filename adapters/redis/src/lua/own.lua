#!lua flags=allow-oom
-- Takes a lock that is free, or that was taken when the answer was lost, while this process has
-- fewer than its share, and says which it has beyond that.
-- KEYS: members, locks. ARGV: token, process, ms. Answers the place of the lock taken or -1, then
-- the places of those beyond the share, from 0 on.
-- A server without memory does it too: only who owns a partition can free any.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[2])
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
    redis.call('ZREM', KEYS[1], gone)
end
local share = math.ceil((#KEYS - 1) / redis.call('ZCARD', KEYS[1]))
local mine, free, answer = 0, nil, { -1 }
for i = 2, #KEYS do
    local held = redis.call('GET', KEYS[i])
    if held == ARGV[1] then
        -- The client counts the lease from this call on.
        redis.call('PEXPIRE', KEYS[i], ARGV[3])
        return { i - 2 }
    elseif not held then
        free = free or i
    elseif string.sub(held, 1, #ARGV[2]) == ARGV[2] then
        mine = mine + 1
        if mine > share then
            answer[#answer + 1] = i - 2
        end
    end
end
if free and mine < share then
    redis.call('SET', KEYS[free], ARGV[1], 'PX', ARGV[3])
    answer[1] = free - 2
end
return answer
