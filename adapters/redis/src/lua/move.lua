#!lua flags=allow-oom
-- Moves what is due to the group's own stream. Returns in how many ms the next is due, or -1; the
-- server's time in ms; and why the first that could not be moved stays, or ''. Those that stay keep
-- nothing back that is due after them.
-- KEYS: delayed, retry. ARGV: the most bytes to move. A server without memory does it too: what is
-- moved takes no more than before.
local time, left, stay, refused = redis.call('TIME'), tonumber(ARGV[1]), 0, ''
local now = time[1] * 1000 + math.floor(time[2] / 1000)
while left > 0 do
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', stay, 1)
    local member = due[1]
    if not member then
        break
    end
    local moved = { err = 'it is no message of ours' }
    local read, fields = pcall(cmsgpack.unpack, member)
    if read and type(fields) == 'table' and #fields > 2 then
        -- Nobody may have been there to move it in time, which is no matter of clocks.
        local late = string.format('%.0f', now - tonumber(due[2]))
        moved = redis.pcall('XADD', KEYS[2], '*', 'anybroker-late', late, unpack(fields, 2))
    end
    if type(moved) == 'table' and moved.err then
        stay = stay + 1
        refused = refused == '' and moved.err or refused
    else
        redis.call('ZREM', KEYS[1], member)
    end
    -- Each costs time beside its bytes.
    left = left - #member - 4096
end
local next = redis.call('ZRANGE', KEYS[1], stay, stay, 'WITHSCORES')
return { next[2] and math.max(0, tonumber(next[2]) - now) or -1, now, refused }
