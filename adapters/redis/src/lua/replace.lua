#!lua flags=allow-oom
-- Stores a copy of each entry and acknowledges the original, in one step, while it is still this
-- consumer's. The copy comes first: if it fails, the original stays. A server without memory does
-- it too: what is acknowledged frees what the copy takes.
-- KEYS: stream, lock, retry, delayed, dead letters. ARGV: group, consumer, token or '', then for
-- each entry: id, count, where ('retry', 'delayed', 'dead', or 'whole': dead, and the fields of the
-- entry follow those that are given), delay in ms, unique text, number of fields, fields. Returns which
-- were not this consumer's, by their places from 0 on, and which copies were refused: place, error,
-- place, error. One that is refused keeps none of the others from being stored.
local stream, group, consumer, token = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local fenced = token == '' or redis.call('GET', KEYS[2]) == token
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lost, refused, place, i = {}, {}, 0, 4
while i <= #ARGV do
    local id, where, length = ARGV[i], ARGV[i + 2], tonumber(ARGV[i + 5])
    local first, last = i + 6, i + 5 + length
    local entry = fenced and redis.call('XPENDING', stream, group, id, id, 1, consumer)[1]
    local mine = entry and entry[4] == tonumber(ARGV[i + 1])
    if mine then
        local stored
        if where == 'delayed' then
            local member = cmsgpack.pack({ ARGV[i + 4], unpack(ARGV, first, last) })
            -- A part of a millisecond would make it early.
            stored = redis.pcall('ZADD', KEYS[4], now + 1 + ARGV[i + 3], member)
        elseif where == 'whole' then
            local copy = { KEYS[5], '*', unpack(ARGV, first, last) }
            local original = redis.call('XRANGE', stream, id, id)[1]
            for _, text in ipairs(original and original[2] or {}) do
                copy[#copy + 1] = text
            end
            stored = redis.pcall('XADD', unpack(copy))
        else
            stored = redis.pcall('XADD', where == 'dead' and KEYS[5] or KEYS[3], '*', unpack(ARGV, first, last))
        end
        if type(stored) == 'table' and stored.err then
            refused[#refused + 1] = place
            refused[#refused + 1] = stored.err
        else
            redis.call('XACK', stream, group, id)
        end
    else
        lost[#lost + 1] = place
    end
    place, i = place + 1, last + 1
end
return { lost, refused }
