// A minimal server on opamp-go, for comparison: it acknowledges every message. On SIGHUP it reads a config from a file and
// offers it to all agents.
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/open-telemetry/opamp-go/protobufs"
	"github.com/open-telemetry/opamp-go/server"
	"github.com/open-telemetry/opamp-go/server/types"
)

type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Errorf(context.Context, string, ...any) {}

func main() {
	endpoint := flag.String("endpoint", "127.0.0.1:4329", "where to listen")
	file := flag.String("config", "", "the config to offer at SIGHUP")
	flag.Parse()

	var mutex sync.Mutex
	agents := map[types.Connection][]byte{}
	callbacks := types.ConnectionCallbacks{
		OnMessage: func(_ context.Context, connection types.Connection, message *protobufs.AgentToServer) *protobufs.ServerToAgent {
			if message.AgentDescription != nil {
				mutex.Lock()
				agents[connection] = message.InstanceUid
				mutex.Unlock()
			}
			return &protobufs.ServerToAgent{InstanceUid: message.InstanceUid}
		},
		OnConnectionClose: func(connection types.Connection) {
			mutex.Lock()
			delete(agents, connection)
			mutex.Unlock()
		},
	}
	callbacks.SetDefaults()
	running := server.New(quiet{})
	err := running.Start(server.StartSettings{
		ListenEndpoint: *endpoint,
		Settings: server.Settings{Callbacks: types.Callbacks{
			OnConnecting: func(*http.Request) types.ConnectionResponse {
				return types.ConnectionResponse{Accept: true, ConnectionCallbacks: callbacks}
			},
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, os.Interrupt)
	for received := range signals {
		if received != syscall.SIGHUP {
			return
		}
		body, err := os.ReadFile(*file)
		if err != nil {
			log.Fatal(err)
		}
		hash := sha256.Sum256(body)
		offer := &protobufs.AgentRemoteConfig{
			Config:     &protobufs.AgentConfigMap{ConfigMap: map[string]*protobufs.AgentConfigFile{"": {Body: body}}},
			ConfigHash: hash[:],
		}
		mutex.Lock()
		for connection, uid := range agents {
			_ = connection.Send(context.Background(), &protobufs.ServerToAgent{InstanceUid: uid, RemoteConfig: offer})
		}
		mutex.Unlock()
	}
}
