# A Slurm of one node for tests, with a state folder, ports and keys of its own; to be sourced. Needs root.
#   install_slurm        install the packages where they are missing
#   start_slurm FOLDER   start it and wait until the node is idle
#   forget_jobs FOLDER   let it forget the jobs that have ended, and wait until it has
#   stop_slurm FOLDER    end the processes that start_slurm has started

install_slurm() {
    local program missing=()
    for program in slurmctld slurmd sbatch munged; do
        command -v "$program" >/dev/null 2>&1 || [ -x "/usr/sbin/$program" ] || missing+=("$program")
    done
    [ "${#missing[@]}" -eq 0 ] && return 0
    command -v apt-get >/dev/null 2>&1 || return 1
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install --yes --no-install-recommends \
        slurm-wlm slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins
}

# Ports are drawn from the process number, so that two clusters on one host do not meet.
write_slurm_conf() { # folder, host
    local base=$((20000 + ($$ % 4000) * 2))
    cat >"$1/slurm.conf" <<CONF
ClusterName=bidsmllm
SlurmctldHost=$2(127.0.0.1)
SlurmctldPort=$base
SlurmdPort=$((base + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$1/munge/socket
CredType=cred/munge
StateSaveLocation=$1/controller
SlurmdSpoolDir=$1/node
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd.pid
SlurmctldLogFile=$1/log/slurmctld.log
SlurmdLogFile=$1/log/slurmd.log
MpiDefault=none
SwitchType=switch/none
TaskPlugin=task/none
ProctrackType=proctrack/linuxproc
# A job over its memory is killed by the node's own accounting, which needs no control groups.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PropagateResourceLimits=NONE
ReturnToService=2
MinJobAge=300
KillWait=30
SlurmdTimeout=60
SlurmdParameters=config_overrides
NodeName=$2 NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=cpu Nodes=$2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=gpu Nodes=$2 MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
}

start_slurm() {
    local folder=$1 host
    host=$(hostname -s)
    PATH=$PATH:/usr/sbin
    mkdir -p "$folder/controller" "$folder/node" "$folder/log" "$folder/munge"
    chmod 755 "$folder" "$folder/munge"
    head -c 1024 /dev/urandom >"$folder/munge/key"
    chmod 400 "$folder/munge/key"
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" || return 1
    write_slurm_conf "$folder" "$host"
    export SLURM_CONF=$folder/slurm.conf LOGNAME=${LOGNAME:-$(id -un)}
    slurmctld -c -f "$SLURM_CONF" && slurmd -f "$SLURM_CONF" || return 1
    for _ in $(seq 150); do
        [ "$(sinfo -h -p cpu -o %t 2>/dev/null)" = idle ] && return 0
        sleep 0.2
    done
    return 1
}

set_job_age() { # folder, seconds
    sed -i "s/^MinJobAge=.*/MinJobAge=$2/" "$1/slurm.conf" && scontrol reconfigure
}

forget_jobs() {
    local end=$((SECONDS + 60)) left=1
    set_job_age "$1" 2 || return 1
    while [ "$SECONDS" -lt "$end" ] && [ "$left" = 1 ]; do
        sleep 0.5
        scontrol -o show job 2>/dev/null | grep -q JobId= || left=0
    done
    set_job_age "$1" 300 && return "$left"
}

stop_slurm() {
    local name pid
    [ -f "$1/slurm.conf" ] && SLURM_CONF=$1/slurm.conf scancel --quiet --user root >/dev/null 2>&1
    for name in slurmd slurmctld munged; do
        [ -s "$1/$name.pid" ] || continue
        pid=$(cat "$1/$name.pid")
        kill "$pid" 2>/dev/null
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null
    done
    return 0
}
