# Makes a server with POSTGRES_PASSWORD where PGDATA is empty, runs the scripts of /docker-entrypoint-initdb.d, serves.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    : "${POSTGRES_PASSWORD:?expected a password}"
    file=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" > "$file"
    initdb --username=postgres --pwfile="$file" --encoding=UTF8 --locale=C.UTF-8 \
        --auth-host=scram-sha-256 --auth-local=trust --pgdata="$PGDATA"
    rm "$file"
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    pg_ctl --pgdata="$PGDATA" --options='-c listen_addresses=' --wait start
    for script in /docker-entrypoint-initdb.d/*; do
        case "$script" in
            *.sh) sh -eu "$script" ;;
            *.sql) psql --username=postgres --no-psqlrc --set=ON_ERROR_STOP=1 --file="$script" ;;
        esac
    done
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
