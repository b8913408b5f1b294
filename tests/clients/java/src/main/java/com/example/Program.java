package com.example;

import com.example.pixyproxy.PixyProxy;
import com.google.gson.Gson;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import java.nio.file.Path;
import java.util.Map;

/**
 * Does what its first argument says with a server, and prints in JSON what came of it: it is how the client is tested.
 */
public final class Program {
  private Program() {}

  public static void main(String[] arguments) throws Exception {
    var channel = connect(System.getenv("PIXY_USERNAME"), System.getenv("PIXY_PASSWORD"));
    try {
      System.out.println(new Gson().toJson(report(channel, arguments)));
    } finally {
      channel.shutdownNow();
    }
  }

  private static Map<String, ?> report(ManagedChannel channel, String[] arguments) throws Exception {
    return switch (arguments[0]) {
      case "journey" -> new Journey(channel, Path.of(arguments[1]), arguments[2]).run(arguments[3], arguments[4]);
      case "calls" -> Calls.calls(channel);
      case "watches" -> Generations.watches(channel, connectTo(arguments[1]));
      case "cancels" -> Generations.cancels(channel, arguments[1]);
      case "edits" -> Edits.edits(channel, Path.of(arguments[1]), Path.of(arguments[2]));
      case "repeats" -> new Journey(channel, Path.of(arguments[1]), "again").repeats();
      default -> throw new IllegalArgumentException(arguments[0]);
    };
  }

  static ManagedChannel connect(String username, String password) {
    return PixyProxy.connect(System.getenv("PIXY_ADDRESS"), InsecureChannelCredentials.create(), username, password);
  }

  private static ManagedChannel connectTo(String address) {
    var env = System.getenv();
    return PixyProxy.connect(
        address, InsecureChannelCredentials.create(), env.get("PIXY_USERNAME"), env.get("PIXY_PASSWORD"));
  }
}
