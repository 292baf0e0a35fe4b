-- place: how many ports each host of a page has leased, and how many of them to workers of a kind. Reads only.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:*     (only its form is used)
-- ARGV  1 from which host on  2 how many hosts (64 or fewer)
--       3 of which organisation to count workers (-: none)  4 of which plugin (-: none)
-- Replies
--       found, then for each host that may be placed on: its name, leased ports, workers of that kind
--       none   there is no host from there on
-- Events  none
-- Loops   64 hosts; where workers are counted, the leased ports of each, at most 512

--@include replies
--@include base
--@include events
--@include grants

local HOSTS_A_CALL = 64
local PORTS_A_HOST = 512

local function run(read, call, try)
  local base, now = KEYS[1], server_time(read)
  if #ARGV < 4 or not (string.find(ARGV[1], '^%d+$') and string.find(ARGV[2], '^%d+$')) then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  local count = math.min(tonumber(ARGV[2]), HOSTS_A_CALL)
  local hosts = read('ZRANGE', base .. ':hosts', ARGV[1], tonumber(ARGV[1]) + count - 1)
  if #hosts == 0 then
    return { NONE }
  end
  local reply, after = { FOUND }, '(' .. string.format(WHOLE, now)
  for _, host in ipairs(hosts) do
    local known = read('HMGET', base .. ':host:' .. host, 'identity', 'cordon')
    if known[1] and not known[2] then
      local its_ports, matching = base .. ':ports:' .. host, 0
      if ARGV[3] ~= '-' or ARGV[4] ~= '-' then
        local ports = read('ZRANGEBYSCORE', its_ports, after, FOREVER, 'LIMIT', 0, PORTS_A_HOST)
        local tokens_key = base .. ':tokens:' .. host
        for i, grant in ipairs(#ports > 0 and read('HMGET', tokens_key, unpack(ports)) or {}) do
          if grant then
            local ended, _, _, _, worker = grant_of(grant, tokens_key, ports[i])
            local org, plugin = string.match(worker, '^([^/]+)/([^#]+)#')
            if ended == '' and (org == ARGV[3] or plugin == ARGV[4]) then
              matching = matching + 1
            end
          end
        end
      end
      local leased = read('ZCOUNT', its_ports, after, FOREVER)
      reply[#reply + 1] = host
      reply[#reply + 1] = leased
      reply[#reply + 1] = matching
    end
  end
  return reply
end

return guarded(run)
