-- Whether two identities (machine, boot, network namespace, address) are not of one host: another machine, or another
-- network namespace of the same boot. After a reboot it is the same host. A machine '-' was not told: who claimed on
-- behalf of a host that it cannot see does not know it.
local function is_other_host(one, other)
  local machine, boot, netns = string.match(one, '^(%S+) (%S+) (%S+)')
  local other_machine, other_boot, other_netns = string.match(other, '^(%S+) (%S+) (%S+)')
  return machine ~= '-' and other_machine ~= '-'
    and (machine ~= other_machine or (boot == other_boot and netns ~= other_netns))
end

-- Whether what is known of a host stays as it is: an address that somebody chose is not replaced by one that was found.
local function keeps_address(one, other)
  local name, address = string.match(one, '^(%S+ %S+ %S+) ?(%S*)$')
  local other_name, other_address = string.match(other, '^(%S+ %S+ %S+) ?(%S*)$')
  return name and name == other_name
    and (other_address == '' or (string.sub(address, 1, 1) == '!' and string.sub(other_address, 1, 1) ~= '!'))
end
