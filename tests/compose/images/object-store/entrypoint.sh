# Starts as root, gives the folder to the image's user, goes on as that user: as the public image does.
set -eu
folder=/data
for argument in "$@"; do
    case "$argument" in -dir=*) folder="${argument#-dir=}" ;; esac
done
if [ "$(id -u)" = 0 ]; then
    chown seaweed "$folder"
    exec setpriv --reuid=seaweed --regid=seaweed --clear-groups sh "$0" "$@"
fi
: "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}"
RCLONE_AUTH_KEY="\"$AWS_ACCESS_KEY_ID,$AWS_SECRET_ACCESS_KEY\"" /opt/rclone serve s3 "$folder" --addr 127.0.0.1:8334 \
    --config /dev/null --cache-dir /tmp/rclone --vfs-cache-mode off --dir-cache-time 1s --poll-interval 0 --no-cleanup &
server=$!
nginx -c /opt/nginx.conf &
proxy=$!
trap 'kill "$proxy" "$server"' TERM INT
wait "$server"
