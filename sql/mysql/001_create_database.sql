-- Creates the database. Run by an administrator of MySQL 8.4+ or MariaDB 10.11+; see docs/operations.md.

-- Full internationalisation: every script, emoji included, in and out of this session and at rest. The collation
-- is one that MySQL and MariaDB both have.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

CREATE DATABASE IF NOT EXISTS pixyproxy
  CHARACTER SET utf8mb4
  COLLATE utf8mb4_unicode_ci;
