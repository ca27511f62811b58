// The lab's stand-in for the CSI project's node-driver-registrar, whose module not every Go proxy serves. It has the
// two flags that the chart sets and does the same for kubelet: asks the driver for its name, then answers kubelet's
// plugin watcher on a socket of that name. When kubelet refuses, it ends with an error, so that the pod shows it.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// A driver that starts beside us answers within seconds; under emulation, within a minute.
const patience = 5 * time.Minute

type server struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              s.name,
		Endpoint:          s.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (s *server) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Fatalf("kubelet refuses %s: %s", s.name, status.Error)
	}
	log.Printf("kubelet has registered %s", s.name)
	return &registration.RegistrationStatusResponse{}, nil
}

func driverName(address string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	connection, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	info, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return "", fmt.Errorf("GetPluginInfo at %s: %w", address, err)
	}
	return info.GetName(), nil
}

func run(address, endpoint, directory string) error {
	name, err := driverName(address)
	if err != nil {
		return err
	}
	socket := filepath.Join(directory, name+"-reg.sock")
	// What a former container left: kubelet would wait for an answer there.
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	log.Printf("%s is offered to kubelet at %s", name, socket)
	service := grpc.NewServer()
	registration.RegisterRegistrationServer(service, &server{name: name, endpoint: endpoint})
	return service.Serve(listener)
}

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket, as this container sees it")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket, as kubelet sees it")
	directory := flag.String("plugin-registration-path", "/registration", "where kubelet looks for plugins")
	flag.Parse()
	if *endpoint == "" {
		log.Fatal("--kubelet-registration-path is required")
	}
	log.Fatal(run(*address, *endpoint, *directory))
}
