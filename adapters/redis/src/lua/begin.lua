-- Claims a key that is free. KEYS: key. ARGV: token, fingerprint, ms.
-- Answers what it was and for how many ms more.
local held = redis.call('GET', KEYS[1])
if not held then
    redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
    return { 'fresh', 0 }
end
local token, fingerprint = string.match(held, '^(%S+) (%S+)$')
if fingerprint ~= ARGV[2] then
    return { 'mismatch', 0 }
end
if token == 'done' then
    return { 'done', 0 }
end
return { 'claimed', redis.call('PTTL', KEYS[1]) }
