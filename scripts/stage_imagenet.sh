#!/usr/bin/env bash
# Copy ImageNet's folders to a disk of this node: bash scripts/stage_imagenet.sh /path/to/imagenet /local/imagenet
# Interrupted, the same command goes on; what is there whole is not copied again, and all is compared in the end.
set -euo pipefail
if [ $# -ne 2 ] || [ ! -d "$1/train" ] || [ ! -d "$1/val" ]; then
    echo "error: Give the folder that holds train/ and val/, and the folder to copy it to; got ${*:-nothing}." >&2
    exit 2
fi
command -v rsync >/dev/null || { echo "error: rsync is not installed." >&2; exit 2; }
mkdir -p "$2"
exec 9>"$2/.staging"
flock 9 # jobs that share the node take turns
for split in train val; do
    rsync --archive --partial --delete "$1/$split/" "$2/$split/"
done
for split in train val; do
    differing=$(rsync --archive --delete --dry-run --itemize-changes "$1/$split/" "$2/$split/")
    if [ -n "$differing" ]; then
        echo "error: $2/$split differs from $1/$split, first in: ${differing%%$'\n'*}" >&2
        exit 2
    fi
done
echo "$2 is a whole copy of $1: $(find "$2" -type f ! -name .staging | wc -l) files."
