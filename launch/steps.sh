# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # Set or used by the scripts that source it.
# What the launch scripts share. Each step is printed with --dry-run and
# executed without; both go through here. Sourced after `dry_run=`, with
# descriptor 3 open on standard output. For bash 3.2 and later.

fail() { # CODE MESSAGE...
  local code=$1
  shift
  echo "error: $*" >&2
  exit "$code"
}

usage() { # SCRIPT, whose head it is
  sed -n '2,/^set/{/^set/d;/^#SBATCH/d;s/^# \{0,1\}//;p;}' "$1"
  exit 0
}

is_one_of() { # WORD "WORD..."
  case " $2 " in *" $1 "*) ;; *) return 1 ;; esac
}

# Reads the command line: sets `verb`, a variable named like each option, and
# `arguments`. The script has set `verbs`, `options`, which take a value, and
# `switches`, which don't.
parse() { # ARGUMENT...
  local argument key
  case ${1:-} in '' | -h | --help) usage "launch/${0##*/}" ;; esac
  verb=$1 && shift
  is_one_of "$verb" "$verbs" ||
    fail 2 "unknown command '$verb'; known are $verbs; it stands first"
  while [ $# -gt 0 ]; do
    argument=$1 && shift
    key=${argument#--} && key=${key%%=*}
    case $argument in
      -h | --help) usage "launch/${0##*/}" ;;
      --dry-run) dry_run=1 && continue ;;
      --)
        arguments=("$@") has_arguments=1
        return
        ;;
      --*=*)
        is_one_of "$key" "$options" &&
          printf -v "${key//-/_}" %s "${argument#*=}" && continue
        ! is_one_of "$key" "$switches" || fail 2 "--$key takes no value"
        ;;
      --*)
        is_one_of "$key" "$switches" && printf -v "${key//-/_}" %s 1 && continue
        ! is_one_of "$key" "$options" || fail 2 "$argument: give it as $argument=VALUE"
        ;;
    esac
    fail 2 "unknown argument '$argument'; known are --${options// /=, --}=," \
      "--${switches// /, --} and --dry-run; the arguments of the training or of" \
      "prepare come after --"
  done
}

# Refuses an option that the command has no use for.
only_for() { # VERBS OPTION VALUE
  [ -z "$3" ] || is_one_of "$verb" "$1" ||
    fail 2 "$2 is nothing to '$verb': it is for ${1// / and }"
}

# What can be told wrong before anything is asked for.
check_options() {
  [[ $bucket == gs://?* ]] ||
    fail 2 "--bucket='$bucket': give the bucket that keeps the run, as" \
      "--bucket=gs://my-bucket"
  bucket=${bucket%/}
  home=$bucket/launch/$name
  only_for prepare --part "$part"
  [ -z "$part" ] || { [[ $part =~ ^0*([0-9]+)/0*([0-9]+)$ ]] &&
    [ "${BASH_REMATCH[1]}" -lt "${BASH_REMATCH[2]}" ]; } ||
    fail 2 "--part='$part': give one part of all, counted from 0, as --part=3/16"
}

# Where it all is: from the command line, or else from the bucket.
load_settings() {
  local key
  read_settings
  slices=${slices:-1}
  [[ $slices =~ ^[1-9][0-9]*$ ]] ||
    fail 2 "--slices='$slices': give a number from 1"
  for key in zone project type; do
    [ -n "${!key}" ] || fail 2 "--$key is missing${dry_run:+ (a dry run reads \
nothing from the bucket)}: $home/settings doesn't tell it either"
  done
  [[ $type =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] ||
    fail 2 "--type='$type': give the accelerator type, as v5p-128 or v5litepod-64"
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
    fail 2 "--zone='$zone': give a zone, as us-east5-a"
  place=("--zone=$zone" "--project=$project")
}

# Lets poison_jax itself read what it will be given, before anything costs.
check_given() { # MODULE ARGUMENT...
  [ ! -x .venv/bin/python ] || .venv/bin/python -m "$@" --check >/dev/null || exit 2
}

# Likewise, what hosts will be given that have the code of the last commit.
check_for_hosts() { # MODULE ARGUMENT...
  local argument file
  for argument in "${@:2}"; do
    case $argument in *.py | *.py:*) ;; *) continue ;; esac
    file=${argument#--config=} && file=${file%%:*}
    [ ! -e "$file" ] ||
      git cat-file -e "HEAD:./$file" 2>/dev/null ||
      fail 2 "$file isn't in the last commit, which is what the hosts get:" \
        "git add it, and commit"
  done
  [ -x .venv/bin/python ] ||
    say "no .venv here, so what follows -- is first read on the hosts" \
      "(bash launch/environment.sh requirements.txt makes it)"
  check_given "$@"
}

# Prints words as one line that a shell reads back.
quoted() { # WORD...
  local word line='' quote="'\\''"
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_@%+=:,./-]* | '') word="'${word//\'/$quote}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Executes a command that changes something, or prints it.
run() { # COMMAND...
  if [ -n "$dry_run" ]; then
    quoted "$@" >&3
  else
    "$@"
  fi
}

# Executes a command that asks for something; a dry run prints it and assumes
# the answer.
ask() { # ASSUMED COMMAND...
  local assumed=$1
  shift
  if [ -n "$dry_run" ]; then
    quoted "$@" >&3
    echo "$assumed"
  else
    "$@"
  fi
}

need() { # PROGRAM WHAT-TO-DO
  [ -n "$dry_run" ] || command -v "$1" >/dev/null 2>&1 ||
    fail 2 "$1 isn't on the PATH: $2"
}

say() { # WORD...
  [ -n "$dry_run" ] || echo "$*"
}

# Prints the commit that the hosts get: HEAD, which must be all there is.
checked_commit() {
  local commit changed
  commit=$(git rev-parse --short=12 HEAD 2>/dev/null) ||
    fail 2 "$PWD is no git checkout: the hosts get the code of a commit"
  changed=$(git status --porcelain --untracked-files=no | wc -l | tr -d ' ')
  if [ "$changed" != 0 ] && [ -z "$dry_run" ]; then
    fail 2 "$changed files differ from commit $commit, which is what the hosts" \
      "get: commit them, or put them aside with git stash"
  fi
  echo "$commit"
}

keep() { # TEXT URL
  put "$1" "$2" || fail 2 "$2 can't be written: $(problem)"
}

put() { # TEXT URL
  local line lines=()
  if [ -n "$dry_run" ]; then
    while IFS= read -r line; do lines+=("$line"); done <<<"$1"
    echo "$(quoted printf '%s\n' "${lines[@]}") |" \
      "$(quoted gcloud storage cp - "$2")" >&3
  else
    gcloud storage cp - "$2" <<<"$1" 2>"$tmp/error"
  fi
}

# Puts the code of a commit into the bucket, where it isn't there yet.
publish_code() { # COMMIT URL
  if [ -n "$dry_run" ]; then
    quoted gcloud storage ls "$2" >&3
    echo "git archive --format=tar.gz $1 | $(quoted gcloud storage cp - "$2")" >&3
  elif ! gcloud storage ls "$2" >/dev/null 2>&1; then
    git archive --format=tar.gz "$1" | gcloud storage cp - "$2" ||
      fail 2 "$2 can't be written: is there such a bucket, and may you write it?"
  fi
}

problem() { # The line of gcloud's error that says most.
  grep -E 'ERROR|rror:' "$tmp/error" | head -n 1 | cut -c 1-300 || true
  grep -qE 'ERROR|rror:' "$tmp/error" || tail -n 1 "$tmp/error" | cut -c 1-300
}

# A run keeps what it was asked for in the bucket, so that later commands need
# not be told, on any machine: the variables that `settings` names, in
# `$home/settings`. The command line may tell those in `changeable` otherwise.
# Sets `kept` to what was read.
read_settings() {
  local key value
  kept=''
  [ -z "$dry_run" ] || return 0
  if ! gcloud storage cat "$home/settings" >"$tmp/settings" 2>"$tmp/error"; then
    grep -qiE 'matched no objects|not.found|404' "$tmp/error" && return
    fail 2 "$home/settings can't be read: $(problem)"
  fi
  while IFS='=' read -r key value; do
    case " $settings " in *" $key "*)
      is_one_of "$key" "$changeable" || [ -z "${!key}" ] ||
        [ "${!key}" = "$value" ] || is_elsewhere "$key" "$value"
      [ -n "${!key}" ] || printf -v "$key" %s "$value"
      kept+="$key=$value "
      ;;
    esac
  done <"$tmp/settings"
}

is_elsewhere() { # KEY VALUE: there, another one would be made
  local given="--${1//_/-}=${!1}" has="has"
  case $1 in
    tier) given=${!1} ;;
    cluster | zone | project) has="is in" ;;
  esac
  fail 2 "$given: $name $has ${2:-neither --spot nor --reserved}, by $home/settings; leave it out, or" \
    "give another --name (-- --workdir=gs://... goes on there)"
}

save_settings() {
  local key text=''
  for key in $settings; do text+=$key=${!key}$'\n'; done
  keep "${text%$'\n'}" "$home/settings"
}

# Runs a command, handing SIGTERM on to it, and sets `code` to its exit code. One
# that dies of it, as Python does while it starts, has begun nothing: 75.
forward() { # COMMAND...
  local child interrupted=1 stopped=''
  "$@" &
  child=$!
  trap 'interrupted=1 stopped=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
  while [ -n "$interrupted" ]; do
    interrupted=''
    wait "$child" && code=0 || code=$?
  done
  [ -z "$stopped" ] || [ "$code" != 143 ] || code=75
}

# The arguments of the training: given, or else those that it had. Read by
# poison_jax before anything costs.
choose_arguments() {
  if [ -z "$has_arguments" ]; then
    had_arguments || fail 2 "nothing to run: give the arguments of the training" \
      "after --, as -- --config=configs/dos.py:size=13b"
  fi
  find_folder
  [ -z "$has_arguments" ] || check_for_hosts poison_jax.train \
    "--workdir=$folder" ${arguments[@]+"${arguments[@]}"}
}

# Reads the arguments that the training had; false where it had none.
had_arguments() {
  local line text
  text=$(ask '' gcloud storage cat "$home/command" 2>/dev/null) || return 1
  [ -n "$text" ] || return 0
  while IFS= read -r line; do arguments+=("$line"); done <<<"$text"
}

keep_arguments() {
  local line text=''
  [ -n "$has_arguments" ] || return 0
  for line in ${arguments[@]+"${arguments[@]}"}; do text+=$line$'\n'; done
  keep "${text%$'\n'}" "$home/command"
}

# Sets `folder` to the run's.
find_folder() {
  local argument
  folder=$bucket/runs/$name
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    case $argument in --workdir=*) folder=${argument#*=} ;; esac
  done
}

# Prints the command that trains, with the run's folder and the cache of
# compiled programs in the bucket.
train_command() { # ARGUMENT...
  local all argument
  find_folder
  all=(python -m poison_jax.train "$@")
  is_one_of "--workdir=$folder" "$*" || all+=("--workdir=$folder")
  for argument in "$@"; do # Only a --config can be overridden.
    case $argument in --config | --config=*)
      all+=("--config.runtime.compilation_cache=$bucket/cache")
      ;;
    esac
  done
  quoted "${all[@]}"
}
