-- Whether a host has a live lease in this space; it reads the space's ports in pages of 512.
local function has_live_lease(host, now)
  for offset = 0, 65535, 512 do
    local ports = read('ZRANGEBYSCORE', ports_key, '(' .. whole(now), FOREVER, 'LIMIT', offset, 512)
    if #ports == 0 then
      return false
    end
    local keys = {}
    for i, port in ipairs(ports) do
      keys[i] = lease_prefix .. port
    end
    for i, lease in ipairs(read('MGET', unpack(keys))) do
      if lease then
        local _, _, _, its_host = lease_head(lease, keys[i])
        if its_host == host then
          return true
        end
      end
    end
  end
  return false
end
