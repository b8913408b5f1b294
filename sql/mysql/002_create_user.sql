-- Creates the user that PixyProxy signs in with, with no more rights than it needs, in its own database only.
-- Run by an administrator, with the password in @pixyproxy_password, so that it stands in no file and on no command
-- line; see docs/operations.md. Without it the script stops and creates nothing.

-- Full internationalisation, as in 001.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

SET @create_user = CONCAT('CREATE USER IF NOT EXISTS ''pixyproxy''@''%'' IDENTIFIED BY ', QUOTE(NULLIF(@pixyproxy_password, '')));
-- QUOTE(NULL) is the word NULL, which is no password: the statement is then refused as a mistake in its syntax.
PREPARE create_user FROM @create_user;
EXECUTE create_user;
DEALLOCATE PREPARE create_user;

GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES
  ON pixyproxy.*
  TO 'pixyproxy'@'%';
