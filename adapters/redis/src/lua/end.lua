-- Renews, completes or abandons a claim that has not run out. KEYS: key.
-- ARGV: renew, complete or abandon, token, ms. Answers 1, or 0 for a claim that ran out.
local token, fingerprint = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%S+)$')
if token ~= ARGV[2] then
    return 0
end
if ARGV[1] == 'renew' then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
elseif ARGV[1] == 'complete' then
    redis.call('SET', KEYS[1], 'done ' .. fingerprint, 'PX', ARGV[3])
else
    redis.call('DEL', KEYS[1])
end
return 1
