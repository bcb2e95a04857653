#!lua flags=allow-oom
-- Moves what is due to the group's own stream; returns in how many ms the next is due, or -1, and
-- the server's time in ms.
-- KEYS: delayed, retry. ARGV: the most bytes to move. A server without memory does it too: what is
-- moved takes no more than before.
local time, left = redis.call('TIME'), tonumber(ARGV[1])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
while left > 0 do
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1)
    local member = due[1]
    if not member then
        break
    end
    -- Nobody may have been there to move it in time, which is no matter of clocks.
    local late = string.format('%.0f', now - tonumber(due[2]))
    redis.call('XADD', KEYS[2], '*', 'anybroker-late', late, unpack(cmsgpack.unpack(member), 2))
    redis.call('ZREM', KEYS[1], member)
    -- Each costs time beside its bytes.
    left = left - #member - 4096
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return { next[2] and math.max(0, tonumber(next[2]) - now) or -1, now }
