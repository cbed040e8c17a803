/*
 * main.c
 *	  regpilot-fcgi, the FastCGI responder of RegPilot.
 */
#include "authorizer.h"
#include "config.h"
#include "listener.h"
#include "log.h"
#include "recorder.h"
#include "relay.h"
#include "server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXIT_BAD_SETTING 2

static const char help[] =
	"regpilot-fcgi: checks API keys in PostgreSQL and relays to LLM providers, for a web server.\n"
	"\n"
	"Usage: regpilot-fcgi [--help | --version]\n"
	"\n"
	"Settings, all from the environment:\n"
	"  REGPILOT_LISTEN            unix:/path, 127.0.0.1:PORT or [::1]:PORT\n"
	"                             (default: descriptor 0 is the listening socket)\n"
	"  REGPILOT_DATABASE          libpq connection string (default: the PG* variables)\n"
	"  REGPILOT_MAX_THREADS       connections served at once (256)\n"
	"  REGPILOT_MAX_BODY          bytes of a request's body (10485760)\n"
	"  REGPILOT_DATABASE_TIMEOUT  ms to wait for a verdict (1500)\n"
	"  REGPILOT_CONNECT_TIMEOUT   ms to connect to an upstream (5000)\n"
	"  REGPILOT_UPSTREAM_TIMEOUT  ms of silence from an upstream (120000)\n"
	"  REGPILOT_SHUTDOWN_GRACE    ms that running answers get after SIGTERM (30000)\n"
	"  REGPILOT_CA_FILE           PEM file of CAs for upstreams (default: the system's)\n"
	"  REGPILOT_SECRETS_DIR       directory with a file for each upstream's secret\n";

int
main(int argc, char **argv)
{
	int listener;
	bool idle;

	if (argc == 2 && strcmp(argv[1], "--help") == 0)
	{
		fputs(help, stdout);
		return EXIT_SUCCESS;
	}
	if (argc == 2 && strcmp(argv[1], "--version") == 0)
	{
		puts("regpilot-fcgi " REGPILOT_VERSION);
		return EXIT_SUCCESS;
	}
	if (argc > 1)
	{
		fputs(help, stderr);
		return EXIT_BAD_SETTING;
	}

	if (!config_read() || !authorizer_init())
		return EXIT_BAD_SETTING;
	if (!server_init() || !relay_init())
		return EXIT_FAILURE;
	listener = listener_open();
	if (listener < 0 || !recorder_start())
		return EXIT_FAILURE;
	log_line("listening on %s", config.listen != NULL ? config.listen : "descriptor 0");

	idle = server_run(listener);
	recorder_stop();
	if (!idle)
		_exit(EXIT_SUCCESS); /* threads still run: leave what they use alone */
	authorizer_finish();
	return EXIT_SUCCESS;
}
