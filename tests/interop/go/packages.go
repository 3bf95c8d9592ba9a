package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/open-telemetry/opamp-go/client/types"
	"github.com/open-telemetry/opamp-go/protobufs"
)

// store keeps packages in a folder, a file each, and their states in memory.
type store struct {
	mutex    sync.Mutex
	folder   string
	all      []byte
	states   map[string]types.PackageState
	contents map[string][]byte
	statuses *protobufs.PackageStatuses
}

func newStore(folder string) *store {
	return &store{folder: folder, states: map[string]types.PackageState{}, contents: map[string][]byte{}}
}

func (s *store) AllPackagesHash() ([]byte, error) { return s.all, nil }

func (s *store) SetAllPackagesHash(hash []byte) error {
	s.all = hash
	return nil
}

func (s *store) Packages() ([]string, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var names []string
	for name := range s.states {
		names = append(names, name)
	}
	return names, nil
}

func (s *store) PackageState(name string) (types.PackageState, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.states[name], nil
}

func (s *store) SetPackageState(name string, state types.PackageState) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	state.Exists = true
	s.states[name] = state
	return nil
}

func (s *store) CreatePackage(name string, kind protobufs.PackageType) error {
	return s.SetPackageState(name, types.PackageState{Exists: true, Type: kind})
}

func (s *store) FileContentHash(name string) ([]byte, error) { return s.contents[name], nil }

func (s *store) UpdateContent(_ context.Context, name string, data io.Reader, contentHash, _ []byte) error {
	content, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	if !bytes.Equal(sum[:], contentHash) {
		return errors.New("the file is another one")
	}
	if bytes.HasPrefix(content, []byte("poison")) {
		return errors.New("poison is not for me")
	}
	s.contents[name] = sum[:]
	return os.WriteFile(filepath.Join(s.folder, name), content, 0o600)
}

func (s *store) DeletePackage(name string) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	delete(s.states, name)
	delete(s.contents, name)
	return os.Remove(filepath.Join(s.folder, name))
}

func (s *store) LastReportedStatuses() (*protobufs.PackageStatuses, error) { return s.statuses, nil }

func (s *store) SetLastReportedStatuses(statuses *protobufs.PackageStatuses) error {
	s.statuses = statuses
	return nil
}
