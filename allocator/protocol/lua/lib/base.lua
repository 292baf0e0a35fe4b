-- Checked numbers, and how a script stops before it has written anything: with one sentence that names the key (`ALLOC …`).
local FOREVER = 'inf'
local WRONG_TYPE = 'holds a value of the wrong type'
local WRONG_WORDS = 'ALLOC a script was called with other words than portlease sends; nothing was changed'

--@define sentence(key, what) 'ALLOC key ' .. key .. ' ' .. what .. '; another program wrote it: move or delete that key'
--@define bad(key, what) error({ err = sentence(key, what) }, 0)
--@define number(text, key, field) (tonumber(text) or bad(key, 'has a garbled field ' .. field))
-- What a command that was tried was answered with stops the script.
--@define refused(answer, key) error({ err = string.find(tostring(answer.err), 'WRONGTYPE', 1, true) and sentence(key, WRONG_TYPE) or answer.err }, 0)

-- A number as text. Redis itself writes a whole number in full where it is an argument; a concatenation does not.
--@define whole(value) string.format('%.0f', value)
