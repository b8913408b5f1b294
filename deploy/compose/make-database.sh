# Run once by the image of MySQL, which sources it: makes the database and PixyProxy's user. The password goes in through
# standard input, so that no process list shows it.
{
  printf "SET @pixyproxy_password = '%s';\n" "$PIXYPROXY_DATABASE_PASSWORD"
  cat /sql/001_create_database.sql /sql/002_create_user.sql
} | docker_process_sql
