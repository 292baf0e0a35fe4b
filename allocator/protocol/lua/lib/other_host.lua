-- Whether two identities (machine, boot, network namespace) are not of one host: another machine, or another network
-- namespace of the same boot. After a reboot it is the same host.
local function is_other_host(one, other)
  local machine, boot = string.match(one, '^(%S+) (%S+)')
  local other_machine, other_boot = string.match(other, '^(%S+) (%S+)')
  return one ~= other and (machine ~= other_machine or boot == other_boot)
end
