-- Keeps how each image was made. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- options are those that were used, in JSON; NULL where they are not known. origin is 1 for generated, 2 for edited and 3
-- for imported images. source_guids, in JSON, are the images that it was made from; NULL for none. The tokens are parts of
-- input_tokens and output_tokens.
ALTER TABLE images ADD COLUMN options TEXT NULL;
ALTER TABLE images ADD COLUMN origin INTEGER NOT NULL DEFAULT 1;
ALTER TABLE images ADD COLUMN source_guids TEXT NULL;
ALTER TABLE images ADD COLUMN input_text_tokens INTEGER NULL;
ALTER TABLE images ADD COLUMN input_image_tokens INTEGER NULL;
ALTER TABLE images ADD COLUMN output_text_tokens INTEGER NULL;
ALTER TABLE images ADD COLUMN output_image_tokens INTEGER NULL;
