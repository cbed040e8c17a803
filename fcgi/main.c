/*
 * main.c
 *	  regpilot-fcgi, the FastCGI responder of RegPilot.
 */
#include "authorizer.h"
#include "config.h"
#include "handover.h"
#include "listener.h"
#include "log.h"
#include "reader.h"
#include "recorder.h"
#include "relay.h"
#include "server.h"
#include "session.h"
#include "task.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define EXIT_BAD_SETTING 2

static void
print_help(void)
{
	fputs("regpilot-fcgi: checks API keys in PostgreSQL and relays to LLM providers, for a web\n"
		  "server that speaks FastCGI.\n"
		  "\n"
		  "Usage: regpilot-fcgi [--SETTING=VALUE ...] | --help | --version\n"
		  "\n"
		  "Settings, as flags or, where there is no flag, from the environment:\n",
		  stdout);
	config_print_help(stdout);
	fputs(
		"\n"
		"A flag can be seen by other users of the machine: a password for the database belongs\n"
		"into a file (PGPASSFILE). What an upstream's secret_name stands for is looked up in the\n"
		"environment, then as a file in the directory for secrets.\n"
		"\n"
		"Logs go to standard error, a JSON object a line. SIGTERM and SIGINT end the process\n"
		"once running answers are complete; SIGHUP does so when a new process, with the program\n"
		"and the files as they are now, serves on the same socket.\n",
		stdout);
}

/*
 * Keys and secrets are in our memory, which no core file may hold: neither one that
 * the kernel writes (the limit) nor one that it pipes to a program (the filter; see
 * core(5)).
 */
static void
forbid_cores(void)
{
	static const struct rlimit none = {0, 0};
	int filter = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);

	if (setrlimit(RLIMIT_CORE, &none) != 0 || filter < 0 || write(filter, "0", 1) != 1)
		log_line("could not forbid core files: %s", strerror(errno));
	if (filter >= 0)
		close(filter);
}

static void
try_authorizing(void *works)
{
	*(bool *) works = authorizer_works();
}

int
main(int argc, char **argv)
{
	int listener;
	bool works = false;
	bool idle;

	if (argc == 2 && strcmp(argv[1], "--help") == 0)
	{
		print_help();
		return EXIT_SUCCESS;
	}
	if (argc == 2 && strcmp(argv[1], "--version") == 0)
	{
		puts("regpilot-fcgi " REGPILOT_VERSION);
		return EXIT_SUCCESS;
	}

	if (!config_read(argv) || !authorizer_init())
		return EXIT_BAD_SETTING;
	if (!log_start())
		return EXIT_FAILURE;
	forbid_cores();
	reader_init();
	session_init();
	if (!server_init() || !relay_init() || (listener = listener_open()) < 0 || !recorder_start())
	{
		log_stop();
		return EXIT_FAILURE;
	}
	if (handover_expected() && (!task_run(try_authorizing, &works) || !works))
	{
		log_line("cannot authorize: not taking over");
		log_stop();
		return EXIT_FAILURE;
	}
	log_info("listening on %s", config.listen != NULL ? config.listen : "descriptor 0");
	handover_serving();

	idle = server_run(listener, argv);
	recorder_stop();
	log_stop();
	if (!idle)
		_exit(EXIT_SUCCESS); /* tasks still run: leave what they use alone */
	tasks_stop();
	session_finish();
	reader_finish();
	authorizer_finish();
	return EXIT_SUCCESS;
}
