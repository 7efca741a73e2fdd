package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// secrets are what a cluster's parts know each other by.
type secrets struct {
	token          string // of the cluster-admin
	ca             []byte // certificate, PEM
	cert, key      []byte // of the API server, PEM
	serviceAccount []byte // key that signs the tokens of service accounts, PEM
}

// newSecrets makes secrets that are good for a year.
func newSecrets() (*secrets, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// A clock that is set back a little must not make them invalid.
	from := time.Now().Add(-time.Hour)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "selvage-lab"},
		NotBefore: from, NotAfter: from.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{address(1).AsSlice(), net.IPv4(10, 96, 0, 1), net.IPv4(127, 0, 0, 1)},
		DNSNames:    []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
	}
	der, err := x509.CreateCertificate(rand.Reader, server, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	saKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	s := &secrets{token: rand.Text(), ca: pemOf("CERTIFICATE", caDER), cert: pemOf("CERTIFICATE", der)}
	if s.key, err = pemOfKey(key); err != nil {
		return nil, err
	}
	s.serviceAccount, err = pemOfKey(saKey)
	return s, err
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func pemOfKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pemOf("EC PRIVATE KEY", der), err
}

// tokens is the file by which the API server knows the cluster-admin.
func (s *secrets) tokens() []byte {
	return fmt.Appendf(nil, "%s,admin,admin,\"system:masters\"\n", s.token)
}

// kubeconfig is the cluster-admin's.
func (s *secrets) kubeconfig() ([]byte, error) {
	c := clientcmdapi.NewConfig()
	c.Clusters["lab"] = &clientcmdapi.Cluster{Server: apiServer(), CertificateAuthorityData: s.ca}
	c.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: s.token}
	c.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "admin"}
	c.CurrentContext = "lab"
	return clientcmd.Write(*c)
}

// write puts the secrets where the control plane and the clients find them.
func (s *secrets) write(p paths) error {
	kubeconfig, err := s.kubeconfig()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.pki(), 0o700); err != nil {
		return err
	}
	for file, data := range map[string][]byte{
		"ca.crt": s.ca, "apiserver.crt": s.cert, "apiserver.key": s.key, "sa.key": s.serviceAccount, "tokens.csv": s.tokens(),
	} {
		if err := os.WriteFile(filepath.Join(p.pki(), file), data, 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(p.kubeconfig(), kubeconfig, 0o600)
}
