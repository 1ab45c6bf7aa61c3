# Sourced by tests/containers/run: a stand-in for debian:bookworm-slim, made of Debian's packages without a registry.
# This machine's certificates and pip settings go into it and nowhere else, so that the recipes need nothing local.
# What is built on it is for tests alone.

# The folders that pip's settings name as places of packages, one a line.
package_folders() {
    local entry
    for entry in $(pip_setting find-links) $(pip_setting extra-index-url) $(pip_setting index-url); do
        entry=${entry#file://}
        entry=${entry%/simple}
        case $entry in /*) [ ! -d "$entry" ] || echo "$entry" ;; esac
    done | sort -u
}

# A setting of pip from its environment variable or its files, those of `install` before the global ones.
pip_setting() {
    local variable
    variable=PIP_$(echo "$1" | tr 'a-z-' 'A-Z_')
    { [ -z "${!variable:-}" ] || echo "${!variable}"; } | grep . \
        || python3 -m pip config get "global.$1" 2>/dev/null || true
}

# usage: make_base OUT.tar
make_base() {
    local settings folder key value hooks=()
    settings=$(mktemp)
    echo "[global]" > "$settings"
    for key in index-url extra-index-url find-links trusted-host; do
        value=$(pip_setting "$key" | xargs)
        # Several values stand on lines of their own, which are indented.
        [ -z "$value" ] || printf '%s =\n%s\n' "$key" "$(printf '    %s\n' $value)" >> "$settings"
    done
    echo "cert = /etc/ssl/certs/ca-certificates.crt" >> "$settings"
    for folder in $(package_folders); do hooks+=(--customize-hook="mkdir -p \"\$1$folder\""); done
    mmdebstrap --quiet --variant=minbase --include=ca-certificates --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "${hooks[@]}" \
        --customize-hook='for file in /usr/local/share/ca-certificates/*.crt; do
            [ ! -f "$file" ] || { mkdir -p "$1/usr/local/share/ca-certificates"
            cp -L "$file" "$1/usr/local/share/ca-certificates/"; }; done' \
        --customize-hook='chroot "$1" update-ca-certificates' \
        --customize-hook="cp $settings \"\$1/etc/pip.conf\" && chmod 644 \"\$1/etc/pip.conf\"" \
        --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
        bookworm "$1" /etc/apt/sources.list.d/debian.sources
    rm "$settings"
}
