# bash completion for ipvsw(8)

_ipvsw() {
    local before=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
    local current=${COMP_WORDS[COMP_CWORD]}
    mapfile -t COMPREPLY < <(ipvsw completion words "${before[@]}" "$current" 2>/dev/null)
}

complete -o default -F _ipvsw ipvsw
