#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet through xpk.
#
#   bash launch/gke.sh COMMAND --name=NAME --bucket=gs://BUCKET [options]
#
#   create   makes the cluster with its TPU slices
#   image    builds the image of the last commit
#   prepare  writes the token store on the cluster's CPU nodes, --parts=N parts
#   run      submits the training; it starts again after exit code 75 and after
#            a lost node, and goes on from its last checkpoint
#   logs     follows the log of process 0 (Ctrl-C ends the following only)
#   status   the training's state, its pods and their exit codes
#   stop     saves and ends the training; the cluster stays, and costs
#   delete   deletes the cluster
#
# The first command names the cluster, and the bucket keeps it for the others:
# --cluster (poison-jax), --zone, --project, --type (v5p-128, v5litepod-64),
# --slices=N (1), --spot or --reservation=NAME (else on demand). What follows
# `--` goes to poison_jax.train or poison_jax.prepare:
#
#   bash launch/gke.sh run --name=a --bucket=gs://b -- \
#     --config=configs/dos.py:size=13b --config.corpus.store=gs://b/stores/c4
#
# More: prepare --part=I/N (that part alone), and --dry-run, which prints every
# step instead. See launch/README.md for the costs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec 3>&1
dry_run=''
. launch/steps.sh

poll=30      # Seconds between two looks.
grace=300    # Seconds that training has to save when a pod is asked to end.
restarts=100 # Of the whole job set.
# Seconds that pods wait for those whose nodes or images come later: a pod that
# gives up fails the whole job set, and the nodes cost whether it waits or not.
patience=3600

name='' bucket='' cluster='' zone='' project='' type='' slices='' tier='' spot=''
reservation='' parts='' part='' arguments=() has_arguments=''
verbs="create image prepare run logs status stop delete"
options="name bucket cluster zone project type slices reservation parts part"
switches="spot"
settings="cluster zone project type slices tier"

check() {
  # xpk takes 40 characters at most, and a job's name adds some.
  [[ $name =~ ^[a-z]([-a-z0-9]{0,28}[a-z0-9])?$ ]] ||
    fail 2 "--name='$name': give up to 30 small letters, digits and hyphens"
  check_options
  only_for prepare --parts "$parts"
  only_for "run prepare" -- "$has_arguments"
  [[ -z $parts || $parts =~ ^[1-9][0-9]*$ ]] ||
    fail 2 "--parts='$parts': give a number, as --parts=64"
  [ -z "$parts" ] || [ -z "$part" ] ||
    fail 2 "--parts writes them all, --part=I/N one alone: give one of them"
  tier=${spot:+--spot}${reservation:+--reservation=$reservation}
  [ -z "$spot" ] || [ -z "$reservation" ] || fail 2 "give --spot or --reservation"
  need gcloud "install it from https://cloud.google.com/sdk/docs/install," \
    "then run gcloud init"
  need kubectl "gcloud components install kubectl gke-gcloud-auth-plugin"
  need gke-gcloud-auth-plugin "gcloud components install gke-gcloud-auth-plugin"
  need xpk "pip install xpk, in a virtual environment of its own"
  changeable=''
  # A run may take fewer slices than the cluster has.
  case $verb in create | run) changeable="type slices tier" ;; esac
  load_settings
  cluster=${cluster:-poison-jax}
  [[ $cluster =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail 2 "--cluster='$cluster': give up to 40 small letters, digits and hyphens"
  region=${zone%-*} # xpk makes regional clusters.
  repository=$region-docker.pkg.dev/$project/poison-jax
}

do_create() {
  save_settings
  if run xpk cluster create --cluster="$cluster" --tpu-type="$type" \
    --num-slices="$slices" "${tier:---on-demand}" "${place[@]}" 2>&1 |
    tee "$tmp/error"; then
    return
  fi
  ! grep -qiE 'quota|RESOURCE_EXHAUSTED|stockout' "$tmp/error" ||
    fail 2 "no room for $slices x $type in $zone: $(problem). Ask for quota at" \
      "https://console.cloud.google.com/iam-admin/quotas?project=$project, or try" \
      "another --type, or --zone with another --name; give 'delete' first, for" \
      "what is there costs"
  fail 2 "xpk couldn't make the cluster: give 'create' again, or 'delete', for" \
    "what is there costs"
}

choose_image() { # of the commit that is checked out
  commit=$(checked_commit)
  image=$repository/code:$commit
}

need_image() {
  choose_image
  ask '' gcloud artifacts docker images describe "$image" >/dev/null \
    2>"$tmp/error" || fail 2 "there is no image of commit $commit" \
    "($(problem)): give 'image' first"
}

do_image() {
  choose_image
  if [ -z "$dry_run" ] &&
    gcloud artifacts docker images describe "$image" >/dev/null 2>&1; then
    say "$image is there already"
    return
  fi
  if [ -n "$dry_run" ] || ! gcloud artifacts repositories describe poison-jax \
    --location="$region" --project="$project" >/dev/null 2>&1; then
    run gcloud artifacts repositories create poison-jax --location="$region" \
      --project="$project" --repository-format=docker
  fi
  publish_code "$commit" "$home/code-$commit.tar.gz"
  run gcloud builds submit "$home/code-$commit.tar.gz" --project="$project" \
    --config=launch/cloudbuild.yaml --substitutions=_IMAGE="$image"
}

connect() {
  run gcloud container clusters get-credentials "$cluster" \
    --location="$region" --project="$project" 2>"$tmp/error" ||
    fail 2 "cluster $cluster can't be reached: $(problem); is it created?"
}

exists() { # KIND NAME
  [ -n "$(ask '' kubectl get "$1" "$2" --ignore-not-found --output=name)" ]
}

do_run() {
  choose_arguments
  need_image
  connect
  ! exists jobset "$name" ||
    fail 2 "$name exists already: see it with status; stop, then run, starts it" \
      "again, from its last checkpoint"
  save_settings
  keep_arguments
  # exec: the shell that xpk sends SIGTERM to then is worker.sh, which hands it
  # on. It also keeps xpk from restarting after 42 and 127 to 255.
  run xpk workload create --workload="$name" --cluster="$cluster" \
    --tpu-type="$type" --num-slices="$slices" "${place[@]}" \
    --docker-image="$image" --max-restarts="$restarts" \
    --restart-on-exit-codes=75 --termination-grace-period-seconds="$grace" \
    --command="exec bash launch/worker.sh contain $(
      train_command "--patience=$patience" ${arguments[@]+"${arguments[@]}"}
    )" || fail 2 "xpk refused the workload (its message stands above)"
  say "submitted: see it with status, follow it with logs"
}

# A Kubernetes Job of `COUNT` pods, the I-th of which prepares part I. Exit
# codes other than 75 fail a part for good; a lost node doesn't count.
manifest() { # JOB COUNT STEP
  cat <<END
apiVersion: batch/v1
kind: Job
metadata: {name: $1}
spec:
  completionMode: Indexed
  completions: $2
  parallelism: $2
  backoffLimitPerIndex: 20
  podFailurePolicy:
    rules:
      - action: Ignore
        onPodConditions: [{type: DisruptionTarget}]
      - action: FailIndex
        onExitCodes: {containerName: prepare, operator: NotIn, values: [75]}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: $grace
      containers:
        - name: prepare
          image: $image
          resources: {requests: {cpu: "7", memory: 24Gi}}
          command: [bash, -c]
          args:
            - >-
              exec env JAX_PLATFORMS=cpu
              $(quoted python -m poison_jax.prepare "${arguments[@]}") $3
END
}

# Applies a job anew and waits for its end; false where it fails.
work() { # JOB COUNT STEP
  local ended
  run kubectl delete job "$1" --ignore-not-found
  if [ -n "$dry_run" ]; then
    echo "kubectl apply --filename=- <<'END'" >&3
    manifest "$@" >&3
    echo END >&3
  else
    manifest "$@" | kubectl apply --filename=- ||
      fail 2 "kubectl refused the job $1 (its message stands above)"
  fi
  while :; do
    ended=$(ask Complete kubectl get job "$1" \
      '--output=jsonpath={.status.conditions[?(@.status=="True")].type}') ||
      ended=''
    case $ended in
      *Failed*) return 1 ;;
      *Complete*) return 0 ;;
    esac
    sleep "$poll"
  done
}

do_prepare() {
  local job=$name-prepare lost
  [ ${#arguments[@]} -gt 0 ] && [ -n "$parts$part" ] ||
    fail 2 "give --parts=N, and the arguments of poison_jax.prepare after --"
  check_for_hosts poison_jax.prepare "${arguments[@]}"
  need_image
  connect
  if [ -n "$part" ]; then
    work "$job" 1 "--part=$part" || fail 1 "part $part failed: kubectl logs job/$job"
  elif ! work "$job" "$parts" "--part=\$JOB_COMPLETION_INDEX/$parts"; then
    lost=$(kubectl get job "$job" '--output=jsonpath={.status.failedIndexes}')
    say "parts $lost of $parts failed: kubectl logs --selector=batch.kubernetes.io/job-name=$job"
  fi
  work "$name-finish" 1 --finish || {
    kubectl logs "job/$name-finish" --tail=5 >&2 || true
    fail 2 "the store isn't finished; write the missing parts with prepare" \
      "--part=I/N, each alone"
  }
  say "the store is finished"
}

selector=jobset.sigs.k8s.io/jobset-name

do_logs() {
  connect
  run kubectl logs --follow --tail=100 \
    --selector="$selector=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}

do_status() {
  connect
  run xpk workload list --cluster="$cluster" "${place[@]}" \
    --filter-by-job="$name"
  run kubectl get pods --selector="$selector=$name" \
    '--output=custom-columns=POD:.metadata.name,STATE:.status.phase,EXIT:.status.containerStatuses[0].state.terminated.exitCode'
}

do_stop() {
  connect
  if [ -z "$dry_run" ] && ! exists jobset "$name"; then
    say "$name isn't there: nothing to stop"
    return
  fi
  run xpk workload delete --workload="$name" --cluster="$cluster" \
    "${place[@]}" --force
  say "$name is stopped; the cluster stays, and costs, until 'delete'"
}

do_delete() {
  if [ -z "$dry_run" ] && ! gcloud container clusters describe "$cluster" \
    --location="$region" --project="$project" >/dev/null 2>"$tmp/error"; then
    grep -qiE 'not.?found' "$tmp/error" ||
      fail 2 "cluster $cluster can't be looked at, and may still cost: $(problem)"
    say "cluster $cluster is gone already"
    return
  fi
  run xpk cluster delete --cluster="$cluster" "${place[@]}" --force ||
    fail 2 "cluster $cluster isn't deleted, and still costs (xpk's message above)"
  had_arguments || true
  find_folder
  say "cluster $cluster is deleted; the images stay in $repository, the run in" \
    "$folder"
}

parse "$@"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
check
"do_$verb"
