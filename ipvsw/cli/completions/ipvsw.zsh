#compdef ipvsw
# zsh completion for ipvsw(8)

_ipvsw() {
    local -a found
    found=("${(@f)$(ipvsw completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n $found ]]; then
        compadd -a found
    else
        _files
    fi
}

if [[ $funcstack[1] == _ipvsw ]]; then
    _ipvsw "$@"
else
    compdef _ipvsw ipvsw
fi
