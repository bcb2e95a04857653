-- Moves dead letters back to their group; answers how many were still there.
-- KEYS: dead letters, retry. ARGV: for each: id, number of fields, fields.
local moved, i = 0, 1
while i <= #ARGV do
    local last = i + 1 + tonumber(ARGV[i + 1])
    if #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) == 1 then
        redis.call('XADD', KEYS[2], '*', unpack(ARGV, i + 2, last))
        redis.call('XDEL', KEYS[1], ARGV[i])
        moved = moved + 1
    end
    i = last + 1
end
return moved
