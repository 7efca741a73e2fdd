package informer

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/shaping"
)

// maxBlocks is how many blocks a pool of selvage.dev can have.
const maxBlocks = 16

// PoolFrom returns a pool of selvage.dev. What cannot be understood of it is in Err, and
// left out: a selector selects no node then.
func PoolFrom(p *v1alpha1.IPPool) *policy.Pool { return (*interner)(nil).pool(p) }

// CalicoPoolFrom returns a pool of Calico's, as PoolFrom does.
func CalicoPoolFrom(p *calico.IPPool) *policy.Pool { return (*interner)(nil).calicoPool(p) }

// ServiceCIDRFrom returns a range of Services' addresses. Blocks that cannot be
// understood are left out.
func ServiceCIDRFrom(s *networkingv1.ServiceCIDR) *policy.ServiceCIDR {
	return (*interner)(nil).services(s)
}

func (in *interner) pool(p *v1alpha1.IPPool) *policy.Pool {
	pool, errs := parsePool(&p.Spec)
	pool.Meta, pool.Created, pool.Err = in.meta(p), created(p), wrong(errs)
	return pool
}

func (in *interner) calicoPool(p *calico.IPPool) *policy.Pool {
	spec := field.NewPath("spec")
	pool := &policy.Pool{
		Meta: in.meta(p), Origin: policy.OriginCalico, Created: created(p),
		NATOutgoing: p.Spec.NATOutgoing, Disabled: p.Spec.Disabled,
	}
	block, errs := parseBlock(spec.Child("cidr"), p.Spec.CIDR)
	if len(errs) == 0 {
		pool.CIDRs = []netip.Prefix{block}
	}
	nodes, err := calicoSelector(p.Spec.NodeSelector)
	if err != nil {
		nodes = labels.Nothing()
		errs = append(errs, field.Invalid(spec.Child("nodeSelector"), p.Spec.NodeSelector, err.Error()))
	}
	pool.Nodes, pool.Err = nodes, wrong(errs)
	return pool
}

func (in *interner) services(s *networkingv1.ServiceCIDR) *policy.ServiceCIDR {
	return &policy.ServiceCIDR{Meta: in.meta(s), Created: created(s), CIDRs: prefixes(s.Spec.CIDRs)}
}

// parsePool returns what can be understood of a pool, and what is wrong with the rest.
func parsePool(s *v1alpha1.IPPoolSpec) (*policy.Pool, field.ErrorList) {
	spec := field.NewPath("spec")
	pool := &policy.Pool{Origin: policy.OriginSelvage, NATOutgoing: s.NATOutgoing, Disabled: s.Disabled}
	blocks, errs := parseBlocks(spec.Child("cidrs"), s.CIDRs)
	nodes, more := parseNodes(spec.Child("nodeSelector"), s.NodeSelector)
	errs = append(errs, more...)
	if b := s.Bandwidth; b != nil {
		bandwidth := spec.Child("bandwidth")
		pool.Ingress, more = parseRate(bandwidth.Child("ingress"), b.Ingress)
		errs = append(errs, more...)
		pool.Egress, more = parseRate(bandwidth.Child("egress"), b.Egress)
		errs = append(errs, more...)
	}
	pool.CIDRs, pool.Nodes = blocks, nodes
	return pool, errs
}

// parseBlocks returns those of a pool's blocks that are in order.
func parseBlocks(path *field.Path, texts []string) (blocks []netip.Prefix, errs field.ErrorList) {
	for i, text := range texts {
		block, wrong := parseBlock(path.Index(i), text)
		if len(wrong) > 0 {
			errs = append(errs, wrong...)
			continue
		}
		overlaps := false
		for _, other := range blocks {
			if other.Overlaps(block) {
				errs = append(errs, field.Invalid(path.Index(i), text, fmt.Sprintf("overlaps %s of the same pool: remove one of them", other)))
				overlaps = true
				break
			}
		}
		if !overlaps {
			blocks = append(blocks, block)
		}
	}
	return blocks, errs
}

func parseBlock(path *field.Path, text string) (netip.Prefix, field.ErrorList) {
	block, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return block, field.ErrorList{field.Invalid(path, text, "must be a block of addresses, as 10.244.0.0/16 or fd00:10:244::/56")}
	case block.Addr().Is4In6():
		return block, field.ErrorList{field.Invalid(path, text, "IPv4 is to be written as such, as 10.244.0.0/16")}
	case block != block.Masked():
		return block, field.ErrorList{field.Invalid(path, text, fmt.Sprintf("has bits of a host: write %s", block.Masked()))}
	}
	return block, nil
}

// parseNodes returns nil for a selector that is not there, and one that selects
// nothing for one that cannot be understood.
func parseNodes(path *field.Path, s *metav1.LabelSelector) (labels.Selector, field.ErrorList) {
	if s == nil {
		return nil, nil
	}
	if errs := metav1validation.ValidateLabelSelector(s, metav1validation.LabelSelectorValidationOptions{}, path); len(errs) > 0 {
		return labels.Nothing(), errs
	}
	nodes, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing(), field.ErrorList{field.Invalid(path, metav1.FormatLabelSelector(s), err.Error())}
	}
	return nodes, nil
}

// parseRate returns bits per second, 0 for one that is not there.
func parseRate(path *field.Path, q *resource.Quantity) (uint64, field.ErrorList) {
	if q == nil {
		return 0, nil
	}
	// String keeps what it returns in the Quantity, which others may look at.
	c := q.DeepCopy()
	text := c.String()
	rate, err := shaping.ParseRate(text)
	if err != nil {
		return 0, field.ErrorList{field.Invalid(path, text, err.Error())}
	}
	return uint64(rate), nil
}

// prefixes returns the blocks that are some, masked.
func prefixes(texts []string) []netip.Prefix {
	var blocks []netip.Prefix
	for _, s := range texts {
		if p, err := netip.ParsePrefix(s); err == nil {
			blocks = append(blocks, p.Masked())
		}
	}
	return blocks
}

// wrong makes one error of many, in a line; nil if there is none.
func wrong(errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	var texts []string
	for _, err := range errs {
		texts = append(texts, oneLine(err.Error()))
	}
	return errors.New(strings.Join(texts, ", "))
}

// validatePool says what the CRD refuses of a pool.
func validatePool(p *v1alpha1.IPPool) field.ErrorList {
	_, errs := parsePool(&p.Spec)
	if most := validation.LabelValueMaxLength; len(p.Name) > most {
		errs = append(errs, field.TooLong(field.NewPath("metadata", "name"), p.Name, most))
	}
	cidrs := field.NewPath("spec", "cidrs")
	switch n := len(p.Spec.CIDRs); {
	case n == 0:
		errs = append(errs, field.Required(cidrs, "a pool has at least one block"))
	case n > maxBlocks:
		errs = append(errs, field.TooMany(cidrs, n, maxBlocks))
	}
	return errs
}

// validateCalicoPool says what Calico would refuse of a pool, as far as it matters
// here. That we do not understand a selector is no mistake in the manifest.
func validateCalicoPool(p *calico.IPPool) field.ErrorList {
	_, errs := parseBlock(field.NewPath("spec", "cidr"), p.Spec.CIDR)
	return errs
}

// validateServices says what the API server would refuse of a range of Services'
// addresses.
func validateServices(s *networkingv1.ServiceCIDR) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec", "cidrs")
	if len(s.Spec.CIDRs) == 0 {
		errs = append(errs, field.Required(path, "a range has at least one block"))
	}
	for i, text := range s.Spec.CIDRs {
		if _, err := netip.ParsePrefix(text); err != nil {
			errs = append(errs, field.Invalid(path.Index(i), text, "must be a CIDR"))
		}
	}
	return errs
}
