"""The proof under faults: real clients and servers, a seeded schedule of faults, and a history that is checked.

How it is made, in the order in which a run goes:

- `conductor` plays rounds. A round has servers of its own (`topologies`), a pool of few ports, a `nursery` that forks
  `actors`, and a `schedule` of `faults` that depends on nothing but the seed and the round's number.
- An actor uses the product's own library through a store that writes down each call before it is sent and its outcome
  (`recording`): `history` says in which form. A call whose outcome nobody saw is unknown, and may have taken effect.
- When the faults are over the actors stand still with what they hold (`settled`): Redis, SQL, the kernel and their
  own belief have to agree. Then they leave, and nothing may be left.
- `checker` decides from the written history alone, with pure functions, one for each rule; `excuses` says what a loss
  of data or a jump of the clock excuses, each as narrowly as its reason allows.
- `mutations` puts bugs into the scripts that an actor loads, on purpose: a checker that cannot fail is worth nothing.

All times are of the one monotonic clock of this machine, so that the history is linear where calls do not overlap.

Source: K. Kingsbury's Jepsen (histories of invocations and completions with an `info` outcome for what is unknown,
checkers apart from what they check, nemeses); M. Herlihy and J. Wing, "Linearizability", TOPLAS 12(3), 1990, for the
order of calls that do not overlap; M. Kleppmann, "How to do distributed locking", 2016, for what fences are for.
"""
