-- limits: how many leases an organisation, a plugin and a service may have, and the bands of ports that belong to plugins.
--
-- Exact because an index holds every live lease: a lease joins with its grant and is dropped only when it is found dead.
-- So an index that is smaller than the limit allows the grant, and only one that is not has to be looked through.

--@include ranges
--@include queue

local LIMIT_PAGE, HOLDERS_NAMED = 512, 5

-- What the bands of other plugins keep from this one: their ranges, to be added to those that are avoided, and whose band
-- the only port that would do is in, if it is in one.
local function bands_of_others(bands, plugin, explicit)
  local owner, kept, taken_by = plugin, '', nil
  if not string.find(bands .. ',', ':' .. owner .. ',', 1, true) then
    owner = short_name(plugin)
  end
  for range, its_owner in string.gmatch(bands, '([%d-]+):([^,]+)') do
    if its_owner ~= owner then
      local from, to = string.match(range, '^(%d+)-(%d+)$')
      if explicit >= tonumber(from) and explicit <= tonumber(to) then
        taken_by = its_owner
      end
      kept = kept .. ',' .. range
    end
  end
  return kept, taken_by
end

-- Looks through an index: how many of its members have a live lease of a worker whose name begins with `prefix`, some of
-- their workers, the members that have none, and the grants among these whose end nobody has seen.
local function count_live(read, base, key, members, is_counted, worker)
  local live, holders, gone, closing = 0, {}, {}, {}
  for from = 1, #members, LIMIT_PAGE do
    local lease_keys = {}
    for i = from, math.min(#members, from + LIMIT_PAGE - 1) do
      lease_keys[#lease_keys + 1] = base .. ':lease:' .. members[i]
    end
    for i, lease in ipairs(read('MGET', unpack(lease_keys))) do
      local member = members[from + i - 1]
      local its_worker = string.match(lease or '', '"worker":"([^"]+)"')
      if its_worker and is_counted(its_worker) then
        live = live + 1
        if #holders < HOLDERS_NAMED and its_worker ~= worker then
          holders[#holders + 1] = its_worker
        end
      else
        local its_namespace, port = string.match(member, '^(.*):(%d+)$')
        its_namespace, port = its_namespace or '-', port or '0'
        local tokens = base .. ':tokens:' .. its_namespace
        local grant = read('HGET', tokens, port)
        gone[#gone + 1] = { key, member }
        local granted_to = grant and string.match(grant, '^%d+ %x+ %S+ (%S+)$')
        if granted_to and is_counted(granted_to) then
          closing[#closing + 1] = { tokens, port, grant }
          local its_org, its_plugin = string.match(granted_to, '^([^/]+)/([^#]+)#')
          read('ZCARD', base .. ':service:' .. its_plugin .. ':' .. its_org)
        end
      end
    end
  end
  return live, holders, gone, closing
end

-- Checks the limits for more leases. `wish`: org, plugin, worker, service, scope, needed (how many), explicit (the only
-- port, 0 for any), replaced (how many leases of this worker it supersedes), asker (its ticket, or ''), waits (whether
-- others may wait), and codes for the replies: taken, limited. Returns a refusal or nil, and what is to be written with the
-- grant: `sets` (the indexes that it joins), `gone` (members to drop), `closing` (grants whose end nobody has seen), `next`
-- (tickets of those who may look next), `bands` (ranges to be avoided). Room that others have waited for longer is theirs.
-- The named ports of a worker (plugin+name) count as leases of its plugin.
local function check_limits(read, try, base, wish)
  local counted = string.match(wish.plugin, '^[^+]+')
  local known = read('HMGET', base, 'limits', 'limit:org:' .. wish.org, 'limit:plugin:' .. counted, 'bands', 'counting')
  local limits, enforced, kept, refusal = known[1] or '', not known[5], { org = 0, plugin = 0, instances = 0 }, nil
  local bands, taken_by = bands_of_others(known[4] or '', counted, wish.explicit)
  local notes = { sets = {}, gone = {}, closing = {}, next = {}, bands = bands }
  if taken_by then
    refusal = { wish.taken, 'reserved', taken_by, -1, string.format('%.0f', wish.now) }
  end
  if wish.waits then
    for kind in pairs(kept) do
      local key = held_key(base, kind, wish.worker)
      kept[kind] = #held_before(try, base, key, kind, wish.asker)
      for _, ticket in ipairs((held_before(try, base, key, kind, ''))) do
        if ticket ~= wish.asker then
          notes.next[#notes.next + 1] = ticket
          break
        end
      end
    end
  end
  local function check(kind, most, key, members, is_counted, needed)
    local live, holders, gone, closing = count_live(read, base, key, members, is_counted, wish.worker)
    for i = 1, #gone do
      notes.gone[#notes.gone + 1] = gone[i]
    end
    for i = 1, #closing do
      notes.closing[#notes.closing + 1] = closing[i]
    end
    if live - wish.replaced + needed + kept[kind] > most then
      refusal = refusal or { wish.limited, kind, most, live, table.concat(holders, ' '), kept[kind] }
    end
  end

  local org_key, plugin_key = base .. ':limited:org:' .. wish.org, base .. ':limited:plugin:' .. counted
  local most = tonumber(known[2] or string.match(limits, 'max_per_org=(%d+)'))
  notes.sets[1], notes.sets[2] = org_key, plugin_key
  if read('SCARD', org_key) + wish.needed + kept.org > (most or math.huge) and enforced then
    check('org', most, org_key, read('SMEMBERS', org_key), function(worker)
      return string.match(worker, '^[^/]+') == wish.org
    end, wish.needed)
  end
  most = tonumber(known[3] or string.match(limits, 'max_per_plugin=(%d+)'))
  if read('SCARD', plugin_key) + wish.needed + kept.plugin > (most or math.huge) and enforced and not refusal then
    check('plugin', most, plugin_key, read('SMEMBERS', plugin_key), function(worker)
      return string.match(worker, '^[^/]+/([^+#]+)') == counted
    end, wish.needed)
  end
  most = tonumber(string.match(limits, 'max_instances=(%d+)'))
  if most and not refusal and read('ZCARD', wish.service) + kept.instances >= most then
    local members = read('ZRANGE', wish.service, 0, -1)
    for i = 1, wish.scope == 'fleet' and #members or 0 do
      members[i] = string.gsub(members[i], '^.*:', '*:')
    end
    check('instances', most, wish.service, members, function(worker)
      return string.match(worker, '^[^#]+') == wish.org .. '/' .. wish.plugin
    end, 1)
  end
  return refusal, notes
end
