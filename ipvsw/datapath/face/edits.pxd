"""The edits that the control thread collects for its next commit."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from ipvsw.datapath.loop.mailbox cimport Edit, EditKind

cdef enum:
    FEW_EDITS = 256  # that there is always room for, once there were any

cdef struct EditList:
    Edit *edits
    size_t length
    size_t room


cdef inline Edit edit(EditKind kind, int32_t port=0) noexcept:
    """All other members are zero."""
    cdef Edit e
    memset(&e, 0, sizeof(e))
    e.kind, e.port = kind, port
    return e


cdef inline int edits_add(EditList *list_, const Edit *e) except -1:
    cdef size_t room = max(<size_t> FEW_EDITS, 2 * list_.room)
    cdef Edit *edits
    if list_.length == list_.room:
        edits = <Edit *> realloc(list_.edits, room * sizeof(Edit))
        if edits == NULL:
            raise MemoryError
        list_.edits, list_.room = edits, room
    list_.edits[list_.length] = e[0]
    list_.length += 1
    return 0


cdef inline void edits_forget(EditList *list_) noexcept:
    """A large array is freed."""
    list_.length = 0
    if list_.room > FEW_EDITS:
        edits_free(list_)


cdef inline void edits_free(EditList *list_) noexcept:
    free(list_.edits)
    memset(list_, 0, sizeof(list_[0]))
