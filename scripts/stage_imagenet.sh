#!/usr/bin/env bash
# Copy ImageNet's folders to a disk of this node: bash scripts/stage_imagenet.sh /path/to/imagenet /local/imagenet
# If interrupted, run the same command again: complete files are not copied again, and everything is compared at the end.
# Files are deleted only in a folder that an earlier staging of the same source created; its .staging names the source.
set -euo pipefail
fail() { echo "error: $1" >&2; exit 2; }
if [ $# -ne 2 ] || [ ! -d "$1/train" ] || [ ! -d "$1/val" ]; then
    fail "Give the folder that contains train/ and val/, and the folder to copy it to; got ${*:-nothing}."
fi
command -v rsync >/dev/null || fail "rsync is not installed."
source=$(realpath "$1")
target=$(realpath --canonicalize-missing "$2")
[ ! -e "$source/.staging" ] || fail "$1 is itself a staged copy; give the folder that it was copied from."
case "$target/" in "$source"/*) fail "$2 is inside $1; give a folder elsewhere." ;; esac
case "$source/" in "$target"/*) fail "$1 is inside $2; give a folder elsewhere." ;; esac
for split in train val; do
    image=$(find -L "$source/$split" -type f \( -iname '*.jpeg' -o -iname '*.jpg' -o -iname '*.png' \) -print -quit)
    [ -n "$image" ] || fail "$1/$split contains no images."
done
if [ ! -e "$target/.staging" ] && [ -n "$(ls -A "$target" 2>/dev/null)" ]; then
    fail "$2 contains files that were not staged from $1; give an empty or a new folder."
fi
mkdir -p "$target"
exec 9>>"$target/.staging"
flock 9 # jobs that share the node take turns
[ -s "$target/.staging" ] || echo "$source" >&9
staged=$(cat "$target/.staging")
[ "$staged" = "$source" ] || fail "$2 was staged from $staged, not from $1; give another folder."
for split in train val; do
    rsync --archive --copy-links --partial --delete "$source/$split/" "$target/$split/"
done
for split in train val; do
    differing=$(rsync --archive --copy-links --delete --dry-run --itemize-changes "$source/$split/" "$target/$split/")
    [ -z "$differing" ] || fail "$2/$split differs from $1/$split, first in: ${differing%%$'\n'*}"
done
echo "$2 is a complete copy of $1: $(find "$target" -type f ! -name .staging | wc -l) files."
