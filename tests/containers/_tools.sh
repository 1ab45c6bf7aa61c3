# Sourced by tests/containers/run: installs what builds and runs images. Needs root on Debian.

# Install Debian packages that give the commands named; nothing is done where all are there.
# usage: need_tools COMMAND... -- PACKAGE...
need_tools() {
    local missing=()
    while [ "$1" != -- ]; do
        command -v "$1" >/dev/null || missing+=("$1")
        shift
    done
    shift
    [ ${#missing[@]} -gt 0 ] || return 0
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

install_builders() {
    need_tools buildah podman runc skopeo iptables mmdebstrap setpriv \
        -- buildah podman runc skopeo iptables mmdebstrap util-linux
}

install_fall_back() {
    need_tools umoci bwrap -- umoci bubblewrap
}

# bookworm has no Apptainer, the unstable suite has one for a newer libc. That libc goes to a folder of its own, where
# only Apptainer's two programs look for it, so that nothing else on the machine changes. Which version comes is up to
# the suite, and one day it may not work: the caller has a fall-back.
install_apptainer() {
    command -v apptainer >/dev/null && return 0
    need_tools mksquashfs newuidmap patchelf fakeroot squashfuse fuse-overlayfs \
        -- squashfs-tools uidmap patchelf fakeroot squashfuse fuse-overlayfs || return 1
    local folder libraries=/opt/apptainer-libs package program
    folder=$(mktemp -d)
    (
        set -e
        cd "$folder"
        mkdir -p lists/partial archives/partial root libs
        mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | head -n 1)
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" > sid.list
        options=(-qq -o APT::Sandbox::User=root -o "Dir::Etc::sourcelist=$folder/sid.list"
            -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
            -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder")
        apt-get "${options[@]}" update
        apt-get "${options[@]}" download apptainer libc6 libseccomp2 libsqlite3-0
        for package in libc6_*.deb libseccomp2_*.deb libsqlite3-0_*.deb; do dpkg-deb -x "$package" libs; done
        dpkg-deb -x apptainer_*.deb root
        mkdir -p "$libraries" /etc/apptainer /var/lib/apptainer/mnt/session
        cp -a libs/usr/lib/x86_64-linux-gnu/*.so* "$libraries/"
        for program in root/usr/bin/apptainer root/usr/lib/x86_64-linux-gnu/apptainer/bin/starter; do
            patchelf --force-rpath --set-rpath "$libraries" \
                --set-interpreter "$libraries/ld-linux-x86-64.so.2" "$program"
        done
        cp -a root/usr/. /usr/
        cp -an root/etc/apptainer/. /etc/apptainer/
    )
    local status=$?
    rm -rf "$folder"
    [ $status = 0 ] && apptainer --version
}
