-- Whether a claiming host (`identity`) is who it is known to be (`known[1]`); leaves `is_known`. The name of a host with
-- live leases is refused to another machine. Whoever does not know the machine it claims for (`-`) changes nothing.
local is_known = known[1] == identity or (known[1] and string.sub(identity, 1, 1) == '-')
if known[1] and not is_known then
  --@include other_host
  if is_other_host(known[1], identity) then
    --@include lease_head
    --@include live_lease
    if has_live_lease(host, now) then
      return { HOST_CONFLICT, string.match(known[1], '^%S+') or '-' }
    end
  else
    is_known = keeps_address(known[1], identity)
  end
end
