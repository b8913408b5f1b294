# Sourced once by the MySQL image: creates the database and PixyProxy's user. The password is passed through standard
# input, so that no process list contains it.
{
  printf "SET @pixyproxy_password = '%s';\n" "$PIXYPROXY_DATABASE_PASSWORD"
  cat /sql/001_create_database.sql /sql/002_create_user.sql
} | docker_process_sql
