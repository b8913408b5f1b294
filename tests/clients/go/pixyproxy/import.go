package pixyproxy

import (
	"context"
	"io"

	pb "example.com/client/pixyproxypb"
)

const chunkSize = 64 * 1024

// Import sends a picture of the caller's own into the store, and returns its detail. As the info has a request_id, it
// is sent again from its start where that may help.
func Import(ctx context.Context, images pb.ImageServiceClient, info *pb.ImportImageInfo, content io.ReadSeeker) (*pb.ImageDetail, error) {
	return Repeat(ctx, func() (*pb.ImageDetail, error) {
		if _, err := content.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		return sendOnce(ctx, images, info, content)
	})
}

func sendOnce(ctx context.Context, images pb.ImageServiceClient, info *pb.ImportImageInfo, content io.Reader) (*pb.ImageDetail, error) {
	stream, err := images.ImportImage(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&pb.ImportImageRequest{Part: &pb.ImportImageRequest_Info{Info: info}})
	for buffer := make([]byte, chunkSize); err == nil; {
		count, problem := content.Read(buffer)
		if count > 0 {
			err = stream.Send(&pb.ImportImageRequest{Part: &pb.ImportImageRequest_Data{Data: buffer[:count]}})
		}
		if problem == io.EOF {
			break
		}
		if problem != nil {
			return nil, problem
		}
	}
	if err != nil && err != io.EOF { // io.EOF says that the server has answered already.
		return nil, err
	}
	response, err := stream.CloseAndRecv()
	return response.GetImage(), err
}
