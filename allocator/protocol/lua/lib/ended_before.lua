-- Whether this holder's lease, or a later one of its worker on this port, was ended by its holder: the port's grant was
-- declined since, so that only the events still tell. Leaves `ended_before`; `recent` is read once for a batch.
recent = recent or read('XREVRANGE', events_key, '+', '-', 'COUNT', EVENTS_SEEN)
local ended_before = false
for _, event in ipairs(recent) do
  local _, kind, _, _, _, its_port, _, its_worker, _, its_fence = unpack(event[2])
  if (kind == RELEASED or kind == DECLINED) and its_worker == worker and its_port == ports[i]
      and tonumber(its_fence) >= tonumber(fence) then
    ended_before = true
  end
end
