-- Several answers to one prompt, log probabilities, and what a lost attempt is worth. What is there
-- already has one answer without log probabilities, and goes on from its tokens.

ALTER TABLE tasks ADD COLUMN resume TEXT NOT NULL DEFAULT 'close';

ALTER TABLE journal ADD COLUMN answer INTEGER NOT NULL DEFAULT 0;
ALTER TABLE journal ADD COLUMN logprobs TEXT;
