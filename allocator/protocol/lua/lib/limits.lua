-- The pool's limits, for `needed` more leases of this worker: needs org, plugin, service, explicit, superseded, scope and
-- space, and in `pool[3]` until when somebody may wait. The named ports of a worker (plugin+name) count as leases of its
-- plugin. It extends `avoid` by the bands of others and leaves `refusal` (a reply, or nil) and in `more` what has to be
-- written with the grant: `sets` (the indexes that it joins), `gone` (members to drop), `closing` (grants whose end
-- nobody has seen) and `next` (tickets of those who may look next). Room that others have waited for longer is theirs.
--
-- Exact because an index holds every live lease: a lease joins with its grant and is dropped only when it is found dead.
-- So an index that is smaller than the limit allows the grant, and only one that is not has to be looked through.
local refusal
local counted_plugin = string.match(plugin, '^[^+]+')
more.sets, more.gone, more.closing, more.next = {}, {}, {}, {}
local limit = read('HMGET', base, 'limits', 'limit:org:' .. org, 'limit:plugin:' .. counted_plugin, 'bands', 'counting')
local limits = limit[1] or ''
--@include short_name
local bands, band_owner = limit[4] or '', counted_plugin
if not string.find(bands .. ',', ':' .. band_owner .. ',', 1, true) then
  band_owner = short_name(counted_plugin)
end
for range, owner in string.gmatch(bands, '([%d-]+):([^,]+)') do
  if owner ~= band_owner then
    local from, to = string.match(range, '^(%d+)-(%d+)$')
    if explicit >= tonumber(from) and explicit <= tonumber(to) then
      refusal = { TAKEN, 'reserved', owner, -1, whole(now) }
    end
    avoid = avoid .. (avoid == '' and '' or ',') .. range
  end
end

local kept = { org = 0, plugin = 0, instances = 0 }
local waits = tonumber(pool[3] or 0) > now and not superseded
if waits then
  --@include held_back
  for kind in pairs(kept) do
    local key = held_key(kind, worker)
    kept[kind] = #held_before(key, kind, more.asker or '')
    for _, ticket in ipairs((held_before(key, kind, ''))) do
      if ticket ~= more.asker then
        more.next[#more.next + 1] = ticket
        break
      end
    end
  end
end

local function count(kind, most, key, members, pattern)
  local live, holders = 0, {}
  for from = 1, #members, LIMIT_PAGE do
    local lease_keys = {}
    for i = from, math.min(#members, from + LIMIT_PAGE - 1) do
      lease_keys[#lease_keys + 1] = base .. ':lease:' .. members[i]
    end
    for i, lease in ipairs(read('MGET', unpack(lease_keys))) do
      local member = members[from + i - 1]
      local its_worker = string.match(lease or '', '"worker":"([^"]+)"')
      if its_worker and string.find(its_worker, pattern) then
        live = live + 1
        if #holders < HOLDERS_NAMED and its_worker ~= worker then
          holders[#holders + 1] = its_worker
        end
      else
        local its_space, port = string.match(member, '^(.*):(%d+)$')
        its_space, port = its_space or '-', port or '0'
        local tokens = base .. ':tokens:' .. its_space
        local grant = read('HGET', tokens, port)
        more.gone[#more.gone + 1] = { key, member }
        if grant and string.find(grant, '^%d+ %x+ %S+ ' .. string.sub(pattern, 2)) then
          more.closing[#more.closing + 1] = { tokens, port, grant }
          local its_service = string.match(grant, ' ([^/ ]+/[^# ]+)#%d+$')
          local its_org, its_plugin = string.match(its_service, '^([^/]+)/(.+)$')
          read('ZCARD', base .. ':service:' .. its_plugin .. ':' .. its_org)
        end
      end
    end
  end
  if live - (superseded and 1 or 0) + needed + kept[kind] > most then
    refusal = refusal or { LIMITED, kind, most, live, table.concat(holders, ' '), kept[kind] }
  end
end

local function plain(name)
  return (string.gsub(name, '%p', '%%%0'))
end

local enforced = not limit[5]
local org_key, plugin_key = base .. ':limited:org:' .. org, base .. ':limited:plugin:' .. counted_plugin
local most = tonumber(limit[2] or string.match(limits, 'max_per_org=(%d+)'))
more.sets[1], more.sets[2] = org_key, plugin_key
if read('SCARD', org_key) + needed + kept.org > (most or math.huge) and enforced then
  count('org', most, org_key, read('SMEMBERS', org_key), '^' .. plain(org) .. '/')
end
most = tonumber(limit[3] or string.match(limits, 'max_per_plugin=(%d+)'))
if read('SCARD', plugin_key) + needed + kept.plugin > (most or math.huge) and enforced and not refusal then
  count('plugin', most, plugin_key, read('SMEMBERS', plugin_key), '^[^/ ]+/' .. plain(counted_plugin) .. '[+#]')
end
most = tonumber(string.match(limits, 'max_instances=(%d+)'))
needed = 1
if most and not refusal and read('ZCARD', service) + kept.instances >= most then
  local members = read('ZRANGE', service, 0, -1)
  for i = 1, scope == 'fleet' and #members or 0 do
    members[i] = string.gsub(members[i], '^.*:', '*:')
  end
  count('instances', most, service, members, '^' .. plain(org) .. '/' .. plain(plugin) .. '#')
end
