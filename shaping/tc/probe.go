package tc

import (
	"errors"

	gotc "github.com/florianl/go-tc"
	"golang.org/x/sys/unix"
)

// loopback is the index of lo in every network namespace.
const loopback = 1

// HasFQCodel tells whether the kernel has fq_codel, and has it loaded if it is a
// module. It asks for one without a single flow: the kernel refuses that before it
// changes anything (fq_codel_init in net/sched/sch_fq_codel.c), and says something
// else if it does not know the kind at all.
func (c *Conn) HasFQCodel() (bool, error) {
	none := uint32(0)
	err := c.tc.Qdisc().Replace(&gotc.Object{
		Msg:       gotc.Msg{Ifindex: loopback, Handle: leafHandle, Parent: parentRoot},
		Attribute: gotc.Attribute{Kind: "fq_codel", FqCodel: &gotc.FqCodel{Flows: &none}},
	})
	switch {
	case errors.Is(err, unix.EINVAL):
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err == nil:
		return false, errors.New("the kernel took an fq_codel without flows")
	}
	return false, wrap("ask for fq_codel", err)
}
