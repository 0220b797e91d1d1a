#!/usr/bin/env bash
# Downloads a prepared data set and links it into data/:
#
#     ./download_data.sh coco|deepfashion|market DIR
#
# DIR/<dataset>/ will hold index.p and the images. Run it again after a broken download: it goes on where it stopped.
# VUNET_DATA_URL is where <dataset>.tar.gz is (an http, https or file URL). See docs/data.md for other ways to get data.
set -euo pipefail
unset CDPATH

fail() { echo "error: $1" >&2; exit "${2:-1}"; }

dataset=${1-}
if [ $# -ne 2 ] || [ -z "$2" ]; then
  fail "usage: ./download_data.sh coco|deepfashion|market DIR" 2
fi
case $dataset in
  coco|deepfashion|market) ;;
  *) fail "found dataset '$dataset'; expected coco, deepfashion or market" 2 ;;
esac
repository=$(cd "$(dirname "$0")" && pwd)
base=${VUNET_DATA_URL:-http://129.206.117.181:8080}
url=${base%/}/$dataset.tar.gz
share=https://heibox.uni-heidelberg.de/d/71842715a8/  # where the authors' data are now, for browsers only
case $2 in /*) target=$2 ;; *) target=./$2 ;; esac  # a folder may be called "-" or "-x"
mkdir -p "$target" 2>/dev/null || fail "cannot make the folder $2" 2
target=$(cd "$target" && pwd -P)

# A connection that delivers nothing for a minute counts as broken.
fetch() { curl --fail --location --connect-timeout 20 --speed-limit 1 --speed-time 60 "$@" -- "$url"; }

download() {
  command -v curl >/dev/null || fail "curl is needed; install it and run this again"
  local part=$1 status=0
  fetch --retry 2 --continue-at - --output "$part" || status=$?
  case $status in
    0) return ;;
    # The server cannot resume, or there is nothing left to fetch: is_whole tells which.
    22|33|36) [ -s "$part" ] && is_whole "$part" && return
       if [ -s "$part" ] && [ $status -ne 22 ]; then
         rm -f -- "$part"
         fetch --output "$part" && return
       fi ;;
    18|23|28|56) [ -s "$part" ] && fail "the download of $url broke off (curl: $status); run this again to go on with it" ;;
  esac
  [ -s "$part" ] || rm -f -- "$part"
  fail "cannot download $url (curl: $status). The authors' data moved to $share, a web share for browsers. \
Other ways: set VUNET_DATA_URL to a mirror, make an index of your own (docs/data.md), or train on drawn people first (make train)"
}

is_whole() { gzip --test -- "$1" 2>/dev/null && tar -tzf "$1" >/dev/null 2>&1; }

# Refuses entries that would land outside of the folder they are unpacked in: absolute names, .., links, devices.
check_entries() {
  local archive=$1 bad
  bad=$(tar -tzf "$archive" | grep -E -m 1 '^/|(^|/)\.\.(/|$)') || true
  [ -z "$bad" ] || refuse "$archive" "its entry '$bad' would land outside of $target"
  bad=$(tar -tvzf "$archive" | grep -E -m 1 -v '^[-d]') || true
  [ -z "$bad" ] || refuse "$archive" "it holds a link or device: $bad"
}

refuse() {
  rm -f -- "$1"
  fail "$url: refused, $2"
}

unpack() {
  local archive=$1 aside="$target/.$dataset.unpacking" found
  rm -rf -- "$aside"
  mkdir -- "$aside"
  tar -xzf "$archive" -C "$aside" --no-same-owner || { rm -rf -- "$aside"; fail "cannot unpack into $target"; }
  found=$(cd -- "$aside" && find . -maxdepth 2 -name index.p | head -n 1)
  if [ -z "$found" ]; then
    rm -rf -- "$aside"
    refuse "$archive" "there is no index.p in it"
  fi
  # A dangling link or an empty folder makes way; a folder with something in it stays.
  if [ -L "$target/$dataset" ] && [ ! -e "$target/$dataset" ]; then
    rm -- "$target/$dataset"
  fi
  if [ -e "$target/$dataset" ] && ! rmdir -- "$target/$dataset" 2>/dev/null; then
    rm -rf -- "$aside"
    fail "$target/$dataset is there already, without an index.p; move it away and run this again"
  fi
  mv -- "$aside/$(dirname "$found")" "$target/$dataset" 2>/dev/null || mv -- "$aside" "$target/$dataset"
  rm -rf -- "$aside"
}

link() {
  local link=$repository/data/$dataset
  mkdir -p -- "$repository/data"
  if [ "$target" = "$(cd "$repository/data" && pwd -P)" ] || [ "$link" -ef "$target/$dataset" ]; then
    return
  fi
  if [ -e "$link" ] && [ ! -L "$link" ]; then
    fail "$link is in the way of a link to $target/$dataset; move it away and run this again"
  fi
  ln -sfn -- "$target/$dataset" "$link"
}

if [ ! -f "$target/$dataset/index.p" ]; then
  archive=$target/$dataset.tar.gz
  if [ ! -f "$archive" ]; then
    download "$archive.part"
    mv -- "$archive.part" "$archive"
  fi
  if ! is_whole "$archive"; then
    rm -f -- "$archive"
    fail "$url: the file that arrived is not a whole .tar.gz and was removed; run this again"
  fi
  check_entries "$archive"
  unpack "$archive"
  rm -f -- "$archive"
fi
link
echo "data/$dataset/index.p is ready"
