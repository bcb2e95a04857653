-- Moves dead letters back to their group; one that is refused stays, and keeps none of the others.
-- KEYS: dead letters, retry. ARGV: for each: id, number of fields, fields.
-- Returns how many were moved, and the error of the first that was refused or ''.
local moved, refused, i = 0, '', 1
while i <= #ARGV do
    local last = i + 1 + tonumber(ARGV[i + 1])
    if #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) == 1 then
        local stored = redis.pcall('XADD', KEYS[2], '*', unpack(ARGV, i + 2, last))
        if type(stored) == 'table' and stored.err then
            refused = refused == '' and stored.err or refused
        else
            redis.call('XDEL', KEYS[1], ARGV[i])
            moved = moved + 1
        end
    end
    i = last + 1
end
return { moved, refused }
